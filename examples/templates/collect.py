"""Notes the strongest frequency of every run. The job file names ``collect``."""

import fcntl


def collect(parameters, result):
    """Append a line to peaks.txt: the parameters and the frequency in units of the drive's.

    After a crash the same run may come again: a line that is there already is not written twice.
    The lock keeps two calls at the same time from doing so.
    """
    lines = [line.split() for line in result["spectrum"].text().splitlines()]
    frequency, _power = max(lines, key=lambda line: float(line[1]))
    note = " | ".join([*parameters.values(), frequency]) + "\n"
    with open("peaks.txt", "a+", encoding="utf-8") as peaks:
        fcntl.flock(peaks, fcntl.LOCK_EX)
        peaks.seek(0)
        if note not in peaks:
            peaks.write(note)
