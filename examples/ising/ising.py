#!/usr/bin/env python3
"""The two-dimensional Ising model: prints the mean of |m|, the magnetisation of a spin.

Clusters after Swendsen and Wang on an L x L torus, from an ordered start. J = k_B = 1, so the
critical temperature is 2 / ln(1 + sqrt(2)) = 2.269. Python 3.6, standard library only.
"""

import argparse
import math
import random


def neighbours_on_torus(size):
    """For each site, row by row, its four neighbours."""
    return [
        (
            row * size + (column + 1) % size,
            row * size + (column - 1) % size,
            (row + 1) % size * size + column,
            (row - 1) % size * size + column,
        )
        for row in range(size)
        for column in range(size)
    ]


def sweep(spins, neighbours, bond, uniform):
    """Cut the lattice into clusters and give each of them a new spin, +1 or -1."""
    new = [0] * len(spins)
    for start, old in enumerate(spins):
        if new[start]:
            continue
        spin = new[start] = 1 if uniform() < 0.5 else -1
        cluster = [start]
        for site in cluster:  # which grows on the way
            for other in neighbours[site]:
                if not new[other] and spins[other] == old and uniform() < bond:
                    new[other] = spin
                    cluster.append(other)
    return new


def magnetisation(size, temperature, seed, updates=200000):
    """The mean of |m| over a run of so many spin updates; the first fifth does not count."""
    uniform = random.Random(f"{size} {temperature} {seed}").random
    neighbours = neighbours_on_torus(size)
    bond = 1 - math.exp(-2 / temperature)
    sweeps = max(10, updates // size**2)
    spins = [1] * size**2
    total = measured = 0
    for number in range(sweeps):
        spins = sweep(spins, neighbours, bond, uniform)
        if number >= sweeps // 5:
            total += abs(sum(spins))
            measured += 1
    return total / measured / size**2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-L", type=int, required=True, help="length of the lattice's side")
    parser.add_argument("-T", type=float, required=True, help="temperature")
    parser.add_argument("--seed", type=int, required=True, help="another seed, another run")
    options = parser.parse_args()
    print(f"{magnetisation(options.L, options.T, options.seed):.6f}")


if __name__ == "__main__":
    main()
