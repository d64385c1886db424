"""``pexecd run --pilot``: a few tasks from all over the table, and what they say of the others."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

from pexecd.units import Seconds


def spread(count: int, tasks: int) -> list[int]:
    """So many tasks of a table, in equal distances; the same ones whenever it is asked.

    Args:
        count: how many, at least 1; all if there are no more.
        tasks: the length of the table.

    Returns:
        Their numbers, in order.
    """
    count = min(count, tasks)
    return [(2 * place + 1) * tasks // (2 * count) + 1 for place in range(count)]


def estimate(
    ran: Sequence[tuple[Seconds, int]], left: int, slots: int, free: int
) -> dict[str, Any]:
    """What is to be expected of the tasks that are left, as statistics.json has it.

    The mean over tickets is the right one for hosts of different speed, too: each host does as
    large a share of the tasks as it will do of the others.

    Args:
        ran: of each task that is done how long its worker ran, and the bytes of its results.
        left: how many tasks were left for later.
        slots: of all clients that were there.
        free: bytes, where the results are kept.
    """
    # Here, because it loads much that a run without a pilot needs not.
    from statistics import fmean, median, stdev  # noqa: PLC0415

    numbers: dict[str, Any] = {
        "ran": len(ran),
        "left": left,
        "slots": slots,
        "free_bytes": free,
        **dict.fromkeys(
            ("shortest_s", "median_s", "mean_s", "longest_s", "margin", "work_s", "wall_s")
        ),
        "result_bytes": None,
    }
    if ran:
        seconds = [took for took, _ in ran]
        mean = fmean(seconds)
        work = mean * left
        numbers |= {
            "shortest_s": round(min(seconds), 6),
            "median_s": round(median(seconds), 6),
            "mean_s": round(mean, 6),
            "longest_s": round(max(seconds), 6),
            "work_s": round(work, 3),
            "result_bytes": round(fmean(size for _, size in ran) * left),
        }
        if mean and len(ran) > 1:
            # Twice the standard error: 19 of 20 times the mean of all tasks is within.
            numbers["margin"] = round(2 * stdev(seconds) / sqrt(len(ran)) / mean, 3)
        if slots and left:
            numbers["wall_s"] = round(max(work / slots, *seconds), 3)
    return numbers
