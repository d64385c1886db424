r"""Patterns with ``$name`` and ``${name}``: Perl's double-quoted strings (SPEC section 3).

A ``Pattern`` is a text to fill in, a ``CommandPattern`` a command line. In both

- ``$name`` and ``${name}`` are variables; ``$x[0]`` is ``$x`` and then ``[0]``;
- ``\$``, ``\\`` and ``\"`` are the plain characters; any other ``\`` stays as it is;
- a ``$`` that begins no name is a mistake, as most such are in Perl (``$1``, ``$(``, a last
  ``$``): a dollar that is meant as itself is written ``\$``.

A command is split into POSIX words first and filled in afterwards, so a value never changes
the number of words; nothing is filled in within single quotes, and outside all quotes ``\``
makes any one character plain, as in sh.
"""

# Tests: tests/unit/jobs/test_templates.py

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from pexecd.jobs.mistakes import did_you_mean

#: What a parameter may be called.
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

_DOLLAR = r"\$(?:([A-Za-z_][A-Za-z0-9_]*)|\{([A-Za-z_][A-Za-z0-9_]*)\}|)"
_TEXT = re.compile(r"\\([\\$\"])|" + _DOLLAR)
#: Within double quotes a backquote may be written as in sh, too.
_QUOTED = re.compile(r"\\([\\$\"`])|" + _DOLLAR)

_WORD_PARTS = re.compile(
    r"""
    (?P<blanks> [ \t\r\n]+)
    | ' (?P<single> [^']*) '
    | " (?P<double> (?: [^"\\] | \\. )*) "
    | \\ (?P<escaped> .)
    | (?P<plain> [^ \t\r\n'"\\]+)
    """,
    re.VERBOSE | re.DOTALL,
)
#: What makes shlex.quote put a word into quotes.
_UNSAFE = re.compile(r"[^\w@%+=:,./-]", re.ASCII).search
_UNCLOSED = {
    "'": "a single quote is not closed",
    '"': "a double quote is not closed",
    "\\": "a backslash at the end stands for nothing",
}


class Problem(NamedTuple):
    """One thing that is wrong in a pattern."""

    #: Where in the text, from 0.
    offset: int
    text: str


class PatternError(ValueError):
    """A text is no pattern; ``problems`` holds everything that is wrong with it."""

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(problem.text for problem in self.problems))


class _Variable(NamedTuple):
    name: str


class Pattern:
    """A checked text with variables, made to be filled in very often.

    Attributes:
        text: the pattern as it was written.
        names: the variables in it, each once, in order.
    """

    __slots__ = ("_holes", "_parts", "names", "text")

    def __init__(self, text: str, pieces: Iterable[str | _Variable]) -> None:
        self.text = text
        self._parts: list[str] = []
        self._holes: list[tuple[int, str]] = []
        for piece in pieces:
            if isinstance(piece, _Variable):
                self._holes.append((len(self._parts), piece.name))
                self._parts.append("")
            else:
                self._parts.append(piece)
        if not self._holes:
            self._parts = ["".join(self._parts)]
        self.names = tuple(dict.fromkeys(name for _, name in self._holes))

    @classmethod
    def parse(cls, text: str, variables: Collection[str] | None = None) -> Pattern:
        """Read a pattern.

        Args:
            text: as the user wrote it.
            variables: the names there are; None: any name will do.

        Raises:
            PatternError: it is malformed, or names unknown variables.
        """
        problems: list[Problem] = []
        pieces = list(_pieces(text, 0, _TEXT, variables, problems))
        if problems:
            raise PatternError(problems)
        return cls(text, pieces)

    def fill(self, values: Mapping[str, str]) -> str:
        """The text with every variable replaced by its value, which is not looked into."""
        if not self._holes:
            return self._parts[0]
        parts = self._parts.copy()
        for place, name in self._holes:
            parts[place] = values[name]
        return "".join(parts)

    def of_cells(self, columns: Sequence[str]) -> Callable[[Sequence[str]], str]:
        """``fill`` for the cells of these columns, in a form that costs a third."""
        if not self._holes:
            text = self._parts[0]
            return lambda _: text
        if self._parts == [""]:
            return itemgetter(columns.index(self._holes[0][1]))
        form = _form(self._parts, [place for place, _ in self._holes])
        cells_of = itemgetter(*[columns.index(name) for _, name in self._holes])
        return lambda cells: form % cells_of(cells)

    def compiled(self, columns: Sequence[str]) -> list[str | int]:
        """The literal texts, and for each variable the place of its column."""
        parts: list[str | int] = [*self._parts]
        for place, name in self._holes:
            parts[place] = columns.index(name)
        return parts

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"


class CommandPattern:
    """A checked command line: a fixed number of words, some with variables.

    Attributes:
        text: the command as it was written.
        written: its words, likewise, with their quotes; none where a shell reads them.
    """

    __slots__ = ("_holes", "_words", "text", "written")

    def __init__(self, text: str, words: Iterable[Pattern], written: tuple[str, ...] = ()) -> None:
        self.text = text
        self.written = written
        self._words: list[str] = []
        self._holes: list[tuple[int, Pattern]] = []
        for place, word in enumerate(words):
            if word.names:
                self._holes.append((place, word))
            self._words.append("" if word.names else word.fill({}))

    @classmethod
    def parse(cls, text: str, variables: Collection[str] | None = None) -> CommandPattern:
        """Read a command that is run without a shell; arguments and errors as ``Pattern.parse``."""
        problems: list[Problem] = []
        words = _split(text, variables, problems)
        if not words and not problems:
            problems.append(Problem(0, "the command is empty"))
        if problems:
            raise PatternError(problems)
        return cls(text, words, tuple(word.text for word in words))

    @classmethod
    def for_shell(cls, text: str) -> CommandPattern:
        """``/bin/sh -c`` and the command as it is written: the shell knows the variables."""
        return cls(text, [Pattern(word, [word]) for word in ("/bin/sh", "-c", text)])

    @property
    def program(self) -> str | None:
        """The first word; None when it has variables."""
        return None if self._holes and self._holes[0][0] == 0 else self._words[0]

    def words(self, values: Mapping[str, str]) -> list[str]:
        """The words, filled in; as many for any values."""
        words = self._words.copy()
        for place, pattern in self._holes:
            words[place] = pattern.fill(values)
        return words

    def line_of_cells(self, columns: Sequence[str]) -> Callable[[Sequence[str]], str]:
        """One line in POSIX shell quoting, of the cells of these columns: see ``words``."""
        quoted = [shlex.quote(word) for word in self._words]
        form = " ".join(quoted)
        if not self._holes:
            return lambda _: form
        form = _form(
            [part for word in quoted for part in (" ", word)][1:],
            [2 * place for place, _ in self._holes],
        )
        fills = [pattern.of_cells(columns) for _, pattern in self._holes]

        def line(cells: Sequence[str]) -> str:
            words: tuple[str, ...] = ()
            for fill in fills:  # a comprehension would cost as much as three of them
                word = fill(cells)
                words += (shlex.quote(word) if not word or _UNSAFE(word) else word,)
            return form % words

        return line

    def compiled(self, columns: Sequence[str]) -> list[list[str | int]]:
        """Each word as ``Pattern.compiled``."""
        words: list[list[str | int]] = [[word] for word in self._words]
        for place, pattern in self._holes:
            words[place] = pattern.compiled(columns)
        return words

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.text!r})"


def _form(parts: Sequence[str], holes: Collection[int]) -> str:
    """The parts as one text for ``%``, with ``%s`` where holes are."""
    return "".join(
        "%s" if place in holes else part.replace("%", "%%") for place, part in enumerate(parts)
    )


def _split(text: str, variables: Collection[str] | None, problems: list[Problem]) -> list[Pattern]:
    """Split a command into POSIX words, minding what stood in which quotes."""
    words: list[Pattern] = []
    word: list[str | _Variable] | None = None
    place = begin = 0
    while place < len(text):
        part = _WORD_PARTS.match(text, place)
        if part is None:
            problems.append(Problem(place, _UNCLOSED[text[place]]))
            break
        kind = part.lastgroup
        if kind == "blanks":
            if word is not None:
                words.append(Pattern(text[begin:place], word))
                word = None
        else:
            if word is None:
                word, begin = [], place
            content = part[kind or ""]
            if kind == "double":
                word += _pieces(content, part.start("double"), _QUOTED, variables, problems)
            elif kind == "plain":
                word += _pieces(content, place, _TEXT, variables, problems)
            else:
                word.append(content)
        place = part.end()
    if word is not None:
        words.append(Pattern(text[begin:place], word))
    return words


def _pieces(
    text: str,
    offset: int,
    token: re.Pattern[str],
    variables: Collection[str] | None,
    problems: list[Problem],
) -> Iterator[str | _Variable]:
    """The literal texts and variables of a text that begins at ``offset``."""
    place = 0
    for found in token.finditer(text):
        if place < found.start():
            yield text[place : found.start()]
        place = found.end()
        plain, bare, braced = found.groups()
        name = bare or braced
        if plain:
            yield plain
        elif not name:
            what = text[found.start() : found.end() + 1].rstrip()
            problems.append(
                Problem(
                    offset + found.start(),
                    rf"'{what}' begins no variable: $name or ${{name}} expected, "
                    r"or \$ for a dollar sign",
                )
            )
        elif variables is not None and name not in variables:
            problems.append(
                Problem(
                    offset + found.start(),
                    f"unknown variable '{found[0]}'{did_you_mean(name, variables)}, "
                    f"a column of the parameter table expected",
                )
            )
        else:
            yield _Variable(name)
    if place < len(text):
        yield text[place:]
