/* Counts the primes p with FROM <= p < TO by dividing: primes FROM TO */

#include <stdio.h>
#include <stdlib.h>

static int is_prime(unsigned long n)
{
    unsigned long d;

    if (n < 4)
        return n > 1;
    if (n % 2 == 0)
        return 0;
    for (d = 3; d <= n / d; d += 2)
        if (n % d == 0)
            return 0;
    return 1;
}

int main(int argc, char **argv)
{
    unsigned long n, to, count = 0;

    if (argc != 3) {
        fprintf(stderr, "usage: primes FROM TO\n");
        return 2;
    }
    to = strtoul(argv[2], NULL, 10);
    for (n = strtoul(argv[1], NULL, 10); n < to; n++)
        count += is_prime(n);
    printf("%lu\n", count);
    return 0;
}
