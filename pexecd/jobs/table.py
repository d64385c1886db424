r"""The parameter table: read in one streaming pass, however long it is (SPEC section 3).

UTF-8 with ``|`` between cells, names in the headline; blanks around a cell do not count; empty
lines and lines that start with ``#`` are skipped, ``\#`` at the start is a plain ``#``.

A block of lines is looked at as a whole first: the usual line costs a fraction of a microsecond,
and only lines in blocks with something special in them are looked at one by one.
"""

# Tests: tests/unit/jobs/test_table.py

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import repeat
from pathlib import Path

from pexecd.errors import BadInputError
from pexecd.jobs.mistakes import Tally, unreadable
from pexecd.jobs.reader import bad_bytes
from pexecd.jobs.templates import NAME, Pattern
from pexecd.jobs.values import Job

_BLOCK_BYTES = 1 << 20
#: Names of input files remembered as looked at, so that memory stays bounded.
_MOST_SEEN = 100_000
_BOM = b"\xef\xbb\xbf"
#: Where a blank may be that does not count, but for those at the very ends of a text.
_EDGES = (" |", "| ", " \n", "\n ")


class Table:
    """The lines of a table; each iteration reads the file from its beginning.

    Iterating gives the cells of each line in table order, ``batches`` the same in bulk.
    Either raises ``BadInputError`` where the file is not, or no longer, as it should be.

    Args:
        path: the table.
        columns: what its headline says.
        digest: of the content when it was checked. That it is still the same is known at the
            end of an iteration, and before its last batch. Empty: not looked at.
    """

    def __init__(self, path: Path, columns: Sequence[str], digest: str = "") -> None:
        self.path = path
        self.columns = tuple(columns)
        self._digest = digest

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        for batch in self.batches():
            for line in batch:
                yield tuple(line.split("|"))

    def batches(self) -> Iterator[list[str]]:
        """Some thousand lines at a time; each is its cells, without blanks, joined with ``|``."""
        scan = _Scan(self.path, str(self.path))
        last: list[str] = []
        for _, lines in scan:
            if scan.columns != self.columns:
                scan.mistakes.add(0, "the headline has changed since the job file was checked")
            scan.fail_on_mistakes()
            if last:
                yield last
            last = lines
        if self._digest and scan.digest != self._digest:
            scan.mistakes.add(0, "has changed since it was checked, start again")
        scan.fail_on_mistakes()
        yield last


def read_table(job: Job) -> Table:
    """The parameter table of a job that was checked."""
    return Table(job.parameters, job.columns, job.table_digest)


def read_columns(path: Path) -> tuple[str, ...]:
    """The names in the headline of a table; only its beginning is read.

    Raises:
        BadInputError: there is no good headline.
    """
    scan = _Scan(path, str(path))
    next(iter(scan), None)
    if not scan.columns:
        scan.fail_on_mistakes()
    return scan.columns


def check_table(
    path: Path, folder: Path, files: Mapping[str, Pattern], shown: str | None = None
) -> tuple[int, str]:
    """Check every line of a table, in one pass.

    Args:
        path: the table.
        folder: where the paths of input files count from.
        files: inputs that are files as they are: name of the input, and pattern of the path.
            For every line the file must be there.
        shown: the table's name in the mistakes, if it is not ``path``.

    Returns:
        The number of parameter sets, and the SHA-256 of the file.

    Raises:
        BadInputError: with the first mistakes, and how many more there are.
    """
    scan = _Scan(path, shown or str(path))
    count = 0
    wanted = _WantedFiles(folder, files)
    for numbers, lines in scan:
        count += len(lines)
        if files:
            wanted.check(numbers, lines, scan)
    scan.fail_on_mistakes()
    return count, scan.digest


def _why(name: str) -> str:
    """What one who wrote this in the headline may not know."""
    if re.search(r"\w[\s,;]+\w", name):
        return "; cells are separated by '|'"
    if re.fullmatch(r"[+-]?[0-9.]+(e[+-]?[0-9]+)?", name, re.IGNORECASE):
        return "; the headline is the first line that is neither empty nor begins with '#'"
    return "" if name else "; before and after each '|' is one"


class _WantedFiles:
    """Looks whether the input files that a table names are there."""

    def __init__(self, folder: Path, files: Mapping[str, Pattern]) -> None:
        self._folder = folder
        self._files = files
        self._seen: set[str] = set()

    def check(self, numbers: Sequence[int], lines: Sequence[str], scan: _Scan) -> None:
        for number, line in zip(numbers, lines, strict=True):
            values = dict(zip(scan.columns, line.split("|"), strict=True))
            for name, pattern in self._files.items():
                file = pattern.fill(values)
                if file in self._seen:
                    continue
                if len(self._seen) >= _MOST_SEEN:
                    self._seen.clear()
                self._seen.add(file)
                problem = unreadable(self._folder / file)
                if problem:
                    scan.mistakes.add(number, f"{file}, for the input {name}, {problem}")


class _Scan:
    """One pass over a table: batches of line numbers and cleaned lines, and the mistakes.

    Attributes:
        columns: the names in the headline; there once the first batch is, empty when there is
            something wrong with them (then there are no batches, only more mistakes).
        mistakes: what was wrong in what was read so far.
    """

    def __init__(self, path: Path, shown: str) -> None:
        self._path = path
        self.columns: tuple[str, ...] = ()
        self.mistakes = Tally(shown)
        self._headline = 0
        self._width = 0
        self._sha256 = hashlib.sha256()

    @property
    def digest(self) -> str:
        """The SHA-256 of what was read so far."""
        return self._sha256.hexdigest()

    def fail_on_mistakes(self) -> None:
        if self.mistakes:
            raise BadInputError(list(self.mistakes))

    def __iter__(self) -> Iterator[tuple[Sequence[int], list[str]]]:
        problem = unreadable(self._path)
        if problem:
            self.mistakes.add(0, f"{problem}, a parameter table was expected")
            return
        first = 1
        found = False
        for block in self._blocks():
            numbers, lines = self._read_block(first, block)
            first += block.count(b"\n") + 1
            found = found or bool(lines)
            if lines and self.columns:
                yield numbers, lines
        if not self._headline:
            self.mistakes.add(0, "has no headline, a line with the parameters' names expected")
        elif not found and not self.mistakes:
            self.mistakes.add(
                self._headline, "no parameter set follows the headline, one a line expected"
            )

    def _blocks(self) -> Iterator[bytes]:
        """The file in blocks of whole lines, without the line feed that ends each block."""
        with self._path.open("rb") as file:
            if file.read(len(_BOM)) == _BOM:
                self._sha256.update(_BOM)
            else:
                file.seek(0)
            begun: list[bytes] = []
            while data := file.read(_BLOCK_BYTES):
                self._sha256.update(data)
                head, newline, tail = data.rpartition(b"\n")
                if newline:
                    yield b"".join((*begun, head))
                    begun = []
                begun.append(tail)
            last = b"".join(begun)
            if last:
                yield last

    def _read_block(self, first: int, block: bytes) -> tuple[Sequence[int], list[str]]:
        """The good lines of a block, with their numbers."""
        at = 0
        while not self._headline:
            end = block.find(b"\n", at)
            self._line(first, block[at : end if end >= 0 else None].removesuffix(b"\r"))
            if end < 0:
                return (), []
            first, at = first + 1, end + 1
        block = block[at:]
        plain = self._plain_block(first, block)
        if plain is not None:
            return plain
        numbers, good = [], []
        for number, raw in enumerate(block.split(b"\n"), first):
            cleaned = self._line(number, raw.removesuffix(b"\r"))
            if cleaned is not None:
                numbers.append(number)
                good.append(cleaned)
        return numbers, good

    def _plain_block(self, first: int, block: bytes) -> tuple[Sequence[int], list[str]] | None:
        """The same, if there is no mistake and nothing rare in the block; else None."""
        # looking for one character costs next to nothing, looking for two does not
        if b"\r" in block:
            block = block.removesuffix(b"\r").replace(b"\r\n", b"\n")
        if b"\r" in block or b"\0" in block or (b"\\" in block and b"\\#" in block):
            return None
        try:
            text = block.decode()
        except UnicodeDecodeError:
            return None
        edged = "\t" in text
        if " " in text:
            text = text.replace(" | ", "|")
            edged = edged or text[0] == " " or text[-1] == " " or any(e in text for e in _EDGES)
        lines = text.split("\n")
        numbers: Sequence[int] = range(first, first + len(lines))
        if ("#" in text and (text[0] == "#" or "\n#" in text)) or not all(lines):
            kept = [
                (number, line)
                for number, line in zip(numbers, lines, strict=True)
                if line and line[0] != "#"
            ]
            numbers, lines = [number for number, _ in kept], [line for _, line in kept]
        if edged:
            lines = [_without_blanks(line) for line in lines]
        counts = set(map(str.count, lines, repeat("|")))
        if not all(lines) or counts - {self._width - 1}:
            return None
        return numbers, lines

    def _line(self, number: int, raw: bytes) -> str | None:
        """One line, cleaned; None if it is to be skipped, is the headline or a mistake."""
        problem = bad_bytes(raw)
        if problem:
            self.mistakes.add(number, problem)
            if not self._headline and not raw.startswith(b"#"):
                self._headline, self._width = number, raw.count(b"|") + 1
            return None
        line = raw.decode()
        if line.startswith("#"):
            return None
        line = _without_blanks(line.removeprefix("\\") if line.startswith("\\#") else line)
        if not line:
            return None
        if not self._headline:
            self._headline = number
            self._read_headline(number, line.split("|"))
            return None
        cells = line.count("|") + 1
        if cells != self._width:
            self.mistakes.add(
                number,
                f"{cells} cell{'s' if cells > 1 else ''}, {self._width} expected "
                f"as in the headline (line {self._headline})",
            )
            return None
        return line

    def _read_headline(self, number: int, names: list[str]) -> None:
        self._width = len(names)
        good = True
        for place, name in enumerate(names):
            if not NAME.fullmatch(name):
                self.mistakes.add(
                    number,
                    f"'{name}' in the headline is no name of a parameter, "
                    f"a letter or '_' and then letters, digits, '_' expected{_why(name)}",
                )
                good = False
            elif name in names[:place]:
                self.mistakes.add(number, f"'{name}' is in the headline twice")
                good = False
        if good:
            self.columns = tuple(names)


def _without_blanks(line: str) -> str:
    return "|".join([cell.strip(" \t") for cell in line.split("|")])
