/* Comes before the C library in one process: every fsync and fdatasync takes $SLOW_FSYNC_MS longer.
 * What the process starts is spared: workers would pay for the loading of it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static struct timespec longer;

__attribute__((constructor)) static void begin(void)
{
    const char *text = getenv("SLOW_FSYNC_MS");
    double seconds = text ? atof(text) / 1000 : 0;
    longer.tv_sec = (time_t)seconds;
    longer.tv_nsec = (long)((seconds - (double)longer.tv_sec) * 1e9);
    unsetenv("LD_PRELOAD");
}

static int slowly(const char *name, int file)
{
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    nanosleep(&longer, NULL);
    return next(file);
}

int fsync(int file)
{
    return slowly("fsync", file);
}

int fdatasync(int file)
{
    return slowly("fdatasync", file);
}
