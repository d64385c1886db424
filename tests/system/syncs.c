/* Comes before the C library in a process that works with a database, keeps books on it, and cuts
 * the power. The book, $SYNCS, has a line for each call, in order:
 *
 *     w NAME OFFSET LENGTH    these bytes were handed to the system
 *     s NAME                  all that was written to this file is on disk
 *
 * The process is killed with the $CUT_AT-th call: a write is done then, a sync is not.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

#define NEXT(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static long calls;

static void call(void)
{
    if (++calls == atol(getenv("CUT_AT")))
        kill(getpid(), SIGKILL);
}

static void note(const char *line, int length)
{
    int book = open(getenv("SYNCS"), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (NEXT(ssize_t, "write", int, const void *, size_t)(book, line, length) != length)
        abort();
    close(book);
}

/* The name of a database's file without its folder, or NULL for any other file. */
static const char *database(int file)
{
    static __thread char path[4096];
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    path[length < 0 ? 0 : length] = 0;
    const char *name = strrchr(path, '/');
    return name != NULL && strncmp(name, "/session.db", 11) == 0 ? name + 1 : NULL;
}

static void written(int file, off_t offset, ssize_t length)
{
    char line[512];
    const char *name = database(file);
    if (name == NULL || length <= 0)
        return;
    note(line, snprintf(line, sizeof line, "w %s %lld %zd\n", name, (long long)offset, length));
    call();
}

ssize_t pwrite64(int file, const void *data, size_t size, off64_t offset)
{
    ssize_t done = NEXT(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(
        file, data, size, offset);
    written(file, offset, done);
    return done;
}

ssize_t pwrite(int file, const void *data, size_t size, off_t offset)
{
    return pwrite64(file, data, size, offset);
}

ssize_t write(int file, const void *data, size_t size)
{
    off_t offset = lseek(file, 0, SEEK_CUR);
    ssize_t done = NEXT(ssize_t, "write", int, const void *, size_t)(file, data, size);
    written(file, offset, done);
    return done;
}

static int synced(int file, const char *how)
{
    char line[512];
    const char *name = database(file);
    if (name != NULL)
        call();
    int failed = NEXT(int, how, int)(file);
    if (name != NULL && !failed)
        note(line, snprintf(line, sizeof line, "s %s\n", name));
    return failed;
}

int fdatasync(int file)
{
    return synced(file, "fdatasync");
}

int fsync(int file)
{
    return synced(file, "fsync");
}
