#!/usr/bin/env python3
"""A damped pendulum under a periodic force: how it swings, and the spectrum of that.

Reads model.cfg, force.dat (the force over one period) and a seed from standard input. Prints the
mean square of the angular velocity about its mean; writes its spectrum to out/spectrum.dat, a line
for each frequency, in units of the force's, and the power. Python 3.6, standard library only.
"""

import cmath
import math
import os
import random
import sys

SETTLING = 60  # periods of the force before the first sample
PERIODS = 16  # periods that are sampled
SAMPLES = 16  # samples in a period
STEPS = 8  # steps of the integration between two samples


def read_settings(path):
    with open(path) as lines:
        pairs = [line.split("=") for line in lines if "=" in line]
    return {name.strip(): float(value) for name, value in pairs}


def swing(settings, force, angle):
    """The angular velocity at every sample, by Runge and Kutta's classical method."""
    period = 2 * math.pi / settings["frequency"]

    def change(time, angle, velocity):
        push = settings["strength"] * force[int(time / period * len(force)) % len(force)]
        return velocity, push - math.sin(angle) - settings["damping"] * velocity

    step = period / SAMPLES / STEPS
    velocity = 0.0
    samples = []
    for number in range((SETTLING + PERIODS) * SAMPLES * STEPS):
        time = number * step
        a1, v1 = change(time, angle, velocity)
        a2, v2 = change(time + step / 2, angle + step / 2 * a1, velocity + step / 2 * v1)
        a3, v3 = change(time + step / 2, angle + step / 2 * a2, velocity + step / 2 * v2)
        a4, v4 = change(time + step, angle + step * a3, velocity + step * v3)
        angle += step / 6 * (a1 + 2 * a2 + 2 * a3 + a4)
        velocity += step / 6 * (v1 + 2 * v2 + 2 * v3 + v4)
        if number >= SETTLING * SAMPLES * STEPS and number % STEPS == 0:
            samples.append(velocity)
    return samples


def power(samples):
    """The one-sided power spectrum; its sum is the mean square of the samples."""
    count = len(samples)
    waves = [cmath.exp(-2j * math.pi * k / count) for k in range(count)]
    spectrum = []
    for line in range(count // 2 + 1):
        amplitude = sum(x * waves[line * k % count] for k, x in enumerate(samples)) / count
        sides = 1 if line in (0, count // 2) else 2
        spectrum.append(sides * abs(amplitude) ** 2)
    return spectrum


def main():
    settings = read_settings("model.cfg")
    with open("force.dat") as lines:
        force = [float(line) for line in lines]
    angle = random.Random(sys.stdin.read().strip()).uniform(-1, 1)
    samples = swing(settings, force, angle)
    mean = sum(samples) / len(samples)
    samples = [x - mean for x in samples]
    os.makedirs("out")
    with open("out/spectrum.dat", "w") as out:
        for line, value in enumerate(power(samples)):
            print(f"{line / PERIODS:.4f} {value:.9e}", file=out)
    print(f"{sum(x * x for x in samples) / len(samples):.9e}")


if __name__ == "__main__":
    main()
