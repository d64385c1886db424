#!/usr/bin/env python3
"""What primes.c does, for platforms that have no compiled version: primes FROM TO. Python 3.6."""

import sys


def is_prime(n):
    if n < 4:
        return n > 1
    if n % 2 == 0:
        return False
    d = 3
    while d * d <= n:
        if n % d == 0:
            return False
        d += 2
    return True


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: primes FROM TO")
    print(sum(is_prime(n) for n in range(int(sys.argv[1]), int(sys.argv[2]))))


if __name__ == "__main__":
    main()
