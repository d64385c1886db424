#!/usr/bin/env python3
"""Writes sweep.txt: every temperature with every size and seed."""

TEMPERATURES = [1.6, 1.8, 2.0, 2.1, 2.2, 2.25, 2.3, 2.35, 2.4, 2.5, 2.7, 3.0]
SIZES = [8, 16, 32]
SEEDS = range(1, 9)

with open("sweep.txt", "w") as table:
    print("L | T    | seed", file=table)
    for size in SIZES:
        for temperature in TEMPERATURES:
            for seed in SEEDS:
                print(f"{size:<2}| {temperature:.2f} | {seed}", file=table)
