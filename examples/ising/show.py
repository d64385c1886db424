#!/usr/bin/env python3
"""Draws the magnetisation over the temperature: show.py results.txt."""

import csv
import sys
from collections import defaultdict
from itertools import pairwise
from statistics import fmean

WIDTH = 50


def read(path):
    """Size -> temperature -> mean of |m| over the seeds."""
    runs = defaultdict(lambda: defaultdict(list))
    with open(path, encoding="utf-8") as table:
        for run in csv.DictReader(table, delimiter="|"):
            runs[int(run["L"])][float(run["T"])].append(float(run["output"]))
    return {
        size: {temperature: fmean(runs[size][temperature]) for temperature in sorted(runs[size])}
        for size in sorted(runs)
    }


def steepest(curve):
    """The two neighbouring temperatures between which the magnetisation falls fastest."""
    return min(
        pairwise(curve), key=lambda pair: (curve[pair[1]] - curve[pair[0]]) / (pair[1] - pair[0])
    )


def crossing(means):
    """Where the scaled curves of the two largest lattices meet: |m| L^(1/8) is the same at T_c."""
    small, large = sorted(means)[-2:]
    common = [temperature for temperature in means[small] if temperature in means[large]]
    gaps = [means[large][t] * large**0.125 - means[small][t] * small**0.125 for t in common]
    for (t1, gap1), (t2, gap2) in pairwise(zip(common, gaps, strict=True)):
        if gap1 > 0 >= gap2:
            return t1 + (t2 - t1) * gap1 / (gap1 - gap2)
    return None


def draw(means):
    """A line for each temperature, a letter for each size; larger lattices over smaller ones."""
    marks = dict(zip(means, "abcdefgh", strict=False))
    print("   T   <|m|>: " + ", ".join(f"{mark} for L = {size}" for size, mark in marks.items()))
    print("      0" + "1".rjust(WIDTH))
    for temperature in sorted({temperature for curve in means.values() for temperature in curve}):
        line = [" "] * (WIDTH + 1)
        for size, curve in means.items():
            if temperature in curve:
                line[round(curve[temperature] * WIDTH)] = marks[size]
        print(f"{temperature:5.2f} |" + "".join(line).rstrip())


def main():
    means = read(sys.argv[1] if len(sys.argv) > 1 else "results.txt")
    draw(means)
    print()
    for size, curve in means.items():
        print("L = {}: falls steepest between T = {:.2f} and {:.2f}".format(size, *steepest(curve)))
    critical = crossing(means) if len(means) > 1 else None
    if critical is not None:
        print(f"Critical temperature, where |m| L^(1/8) crosses: {critical:.3f} (exact: 2.269)")


if __name__ == "__main__":
    main()
