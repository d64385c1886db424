"""The pexecd command, with a book of where its CPU time goes.

    python -m bench.measured BOOK ARGUMENTS OF PEXECD ...

BOOK gets, as JSON, the CPU seconds of the process, of its children that have ended, and of each
thread with its ID and name; the interpreter's own end is left out. With PEXEC_BENCH_PROFILE set,
SIGUSR1 begins a profile of the main thread, which is the reactor's; it is written to BOOK.profile
at the end.
"""

from __future__ import annotations

import cProfile
import json
import os
import pstats
import resource
import signal
import sys
import threading
import time
from pathlib import Path

from bench.running import thread_seconds

#: Seconds between two looks at the threads: those of a pool end before the process does.
LOOK = 0.1


def show_profile(book: Path) -> None:
    """Print what was written beside a book."""
    stats = pstats.Stats(f"{book}.profile")
    stats.strip_dirs()
    for order in ("tottime", "cumtime"):
        stats.sort_stats(order).print_stats(30)


def main() -> None:
    book = Path(sys.argv.pop(1))
    names: dict[int, str] = {}
    seconds: dict[int, float] = {}
    over = threading.Event()

    def look() -> None:
        names.update(
            (thread.native_id, thread.name)
            for thread in threading.enumerate()
            if thread.native_id is not None
        )
        seconds.update(thread_seconds("self"))

    def watch() -> None:
        while not over.wait(LOOK):
            look()

    threading.Thread(target=watch, name="bench", daemon=True).start()
    profile = cProfile.Profile()
    if "PEXEC_BENCH_PROFILE" in os.environ:
        signal.signal(signal.SIGUSR1, lambda *_: profile.enable())

    from pexecd.cli.main import main as pexecd  # noqa: PLC0415 - its imports are its own time

    try:
        pexecd()
    finally:
        profile.disable()
        over.set()
        look()
        children = resource.getrusage(resource.RUSAGE_CHILDREN)
        book.write_text(
            json.dumps(
                {
                    "all": time.process_time(),
                    "children": children.ru_utime + children.ru_stime,
                    "threads": [
                        [thread, names.get(thread, "?"), used] for thread, used in seconds.items()
                    ],
                }
            )
        )
        if "PEXEC_BENCH_PROFILE" in os.environ:
            profile.dump_stats(f"{book}.profile")


if __name__ == "__main__":
    main()
