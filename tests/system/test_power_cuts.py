"""Whatever a power cut leaves of the journal's files: nothing that was confirmed is missing.

The real journal works in a process of its own, under a small library (``syncs.c``) that notes
what was written and what is known to be on disk, and that ends the process at any moment. What
was not known to be on disk is then cut off or overwritten at random, as a power cut may.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pexecd.store.reading import read_results
from pexecd.store.recovery import Recovery
from pexecd.store.schema import open_database

#: So often the power is cut, each time with so many different outcomes.
RUNS, OUTCOMES = 20, 10

#: The header of a write-ahead log lies in one sector: it is written whole or not at all.
HEADER = 32

#: Appends records with growing numbers, some at a time, and writes each number to standard output
#: once it is confirmed. Small logs make that every part of SQLite's work is cut short.
LOAD = """
import os, sys
from pathlib import Path
from pexecd.core.effects import TaskDone, TicketGiven
from pexecd.ports import ResultKept, StoredResult
from pexecd.store.journal import Journal
from tests.pump import Pump
from tests.system.test_power_cuts import data

pump = Pump()
journal = Journal.open(Path(sys.argv[1]), pump)
journal._connection.execute("PRAGMA wal_autocheckpoint = 60")
last = 0

def more():
    global last
    last += 1
    number, ticket = last, last + 9999
    results = (StoredResult("output", len(data(number)), data(number), None),)
    journal.append([
        TicketGiven(ticket, number, "c", "h", True, True),
        ResultKept(ticket, number, results),
        TaskDone(number, ticket),
    ]).addCallback(confirmed, number)

def confirmed(_, number):
    os.write(1, b"%d\\n" % number)
    more()

for _ in range(5):
    more()
while True:
    pump.step()
"""


def data(number: int) -> bytes:
    """The result of a task, up to some pages long."""
    return b"%d " % number * random.Random(number).choice([1, 20, 500, 2500])


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("library") / "syncs.so"
    source = Path(__file__).with_name("syncs.c")
    subprocess.run(
        ["cc", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC", "-o", made, source, "-ldl"],
        check=True,
    )
    return made


@dataclass
class File:
    """What may be lost of one of the database's files."""

    #: Bytes from here on were not known to be on disk (for a log: of what is valid in it).
    durable: int = 0
    #: Offset and length of what was written since the last sync.
    pending: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return max([self.durable, *(offset + length for offset, length in self.pending)])


def read_book(book: Path) -> dict[str, File]:
    files = {"session.db": File(), "session.db-wal": File()}
    for line in book.read_text().splitlines():
        kind, name, *numbers = line.split()
        if name not in files:
            continue  # the first moments, before there is a log
        file = files[name]
        if kind == "w":
            offset, length = map(int, numbers)
            if offset == 0 and name.endswith("-wal"):
                file.durable = 0  # the log begins anew: all that was in it is in the database
            file.pending.append((offset, length))
        else:
            file.durable = file.end
            file.pending.clear()
    return files


def cut_log(path: Path, file: File, dice: random.Random) -> bool:
    """Cut the log behind what is durable, maybe with garbage after it.

    Returns:
        Whether bytes that were written are gone.
    """
    place = dice.randint(file.durable, file.end)
    if place < HEADER:
        place = 0
    with path.open("r+b") as log:
        log.truncate(place)
        if place >= HEADER and dice.random() < 0.5:
            log.seek(place)
            log.write(dice.randbytes(dice.randint(1, 20_000)))
    return place < file.end


def spoil_database(path: Path, file: File, dice: random.Random) -> None:
    """Pages that were being copied from the log to their place arrived, or did not, or in part."""
    with path.open("r+b") as database:
        for offset, length in file.pending:
            if dice.random() < 0.5:
                begin = dice.randrange(length)
                database.seek(offset + begin)
                database.write(dice.randbytes(length - begin))


@pytest.mark.slow
def test_a_power_cut_loses_nothing_that_was_confirmed(library: Path, tmp_path: Path) -> None:
    dice = random.Random(2026)
    hit = halfway = 0
    for run in range(RUNS):
        folder = tmp_path / f"run{run}"
        folder.mkdir()
        open_database(folder / "session.db").close()
        environment = {
            **os.environ,
            "LD_PRELOAD": str(library),
            "SYNCS": str(folder / "book"),
            "CUT_AT": str(dice.randint(1, 1500)),
        }
        loaded = subprocess.run(
            [sys.executable, "-c", LOAD, folder / "session.db"],
            env=environment, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2],
        )  # fmt: skip
        assert loaded.returncode == -9
        confirmed = [int(number) for number in loaded.stdout.split()]
        assert confirmed == list(range(1, len(confirmed) + 1))
        files = read_book(folder / "book")
        halfway += bool(files["session.db"].pending)
        for outcome in range(OUTCOMES):
            copy = folder / str(outcome)
            copy.mkdir()
            for name in files:
                if (folder / name).exists():
                    shutil.copy(folder / name, copy / name)
            if (copy / "session.db-wal").exists():
                hit += cut_log(copy / "session.db-wal", files["session.db-wal"], dice)
            spoil_database(copy / "session.db", files["session.db"], dice)
            check(copy / "session.db", len(confirmed))
        shutil.rmtree(folder)
    print(
        f"{RUNS * OUTCOMES} power cuts: {hit} took away bytes that were not confirmed, "
        f"{halfway * OUTCOMES} came while the log was copied into the database"
    )
    assert hit > RUNS
    assert halfway


def check(path: Path, confirmed: int) -> None:
    """All that was confirmed is there, what else is there is whole, and the database is sound."""
    with closing(open_database(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        settled = dict(Recovery(path).settled())
        assert list(settled) == list(range(1, len(settled) + 1))
        assert len(settled) >= confirmed
        results = read_results(connection, list(settled.values()))  # type: ignore[arg-type]
        assert [kept.data for (kept,) in results.values()] == [data(task) for task in settled]
