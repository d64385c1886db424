"""The sections of a job file that say what goes in and what comes out of each task."""

# Tests: tests/unit/jobs/test_rules.py

from __future__ import annotations

import os
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from pexecd.errors import Mistake
from pexecd.jobs.fields import Fields, JobText
from pexecd.jobs.functions import function_problem
from pexecd.jobs.mistakes import Tally, did_you_mean, one_of
from pexecd.jobs.reader import Entry
from pexecd.jobs.templates import Pattern, PatternError
from pexecd.jobs.values import (
    CollectKind,
    CollectRule,
    FunctionRef,
    InputKind,
    InputRule,
    ResultRule,
    Test,
    TestKind,
)

_RESULT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
#: Keys of [validate] and [collect], and fields of an upload by multipart/form-data.
_TAKEN_NAMES = {
    "function": "[validate] and [collect] use that word",
    "failed": "[collect] uses that word",
    "order": "[collect] uses that word",
    "SessionID": "uploads use that word",
    "Ticket": "uploads use that word",
}
_MATCH = re.compile(r"match\s+/((?:\\.|[^\\])*?)/(?=\s|$)")
_WORD = re.compile(r"\S+")
_DEFAULT_RESULTS = (ResultRule("output", "stdout"),)


def read_inputs(text: JobText, columns: Collection[str] | None) -> tuple[InputRule, ...]:
    """``[input]``: file name (or stdin) = parameter, ``@TEMPLATE`` or ``<FILE``."""
    fields = text.fields("input")
    rules: list[InputRule] = []
    seen: dict[str, Entry] = {}
    for entry in list(fields.entries.values()):
        problem = entry.key != "stdin" and _ticket_path_problem(entry.key)
        if problem:
            fields.mistake(entry, problem)
        else:
            for other in _clashes(entry.key, seen):
                fields.mistake(entry, f"is in the way of '{other.key}' in line {other.line}")
            seen[entry.key] = entry
        if fields.string(entry.key) is None:
            continue
        rule = _input_rule(fields, entry, columns)
        if rule is not None:
            rules.append(rule)
    return tuple(rules)


def _clashes(name: str, seen: Mapping[str, Entry]) -> Iterator[Entry]:
    """Inputs before this that are the same file, or a folder where the other is a file."""
    if name == "stdin":
        return
    mine = posixpath.normpath(name)
    for other, entry in seen.items():
        theirs = posixpath.normpath(other)
        if other != "stdin" and (
            mine == theirs or mine.startswith(theirs + "/") or theirs.startswith(mine + "/")
        ):
            yield entry


def _input_rule(fields: Fields, entry: Entry, columns: Collection[str] | None) -> InputRule | None:
    source = entry.value[1:].strip()
    if entry.value in {"@", "<"}:
        fields.mistake(entry, f"'{entry.value}': a file expected after it")
        return None
    match entry.value[0]:
        case "@":
            path = fields.file(entry, source)
            return _template_rule(fields.text, entry, path, source, columns) if path else None
        case "<":
            try:
                return InputRule(entry.key, InputKind.FILE, Pattern.parse(source, columns))
            except PatternError as error:
                for problem in error.problems:
                    fields.mistake(entry, problem.text)
                return None
        case _:
            name = entry.value
            if columns is not None and name not in columns:
                hint = did_you_mean(name.strip("${}"), columns)
                fields.mistake(
                    entry,
                    f"'{name}' is no column of the parameter table{hint}: "
                    "a column, @TEMPLATE or <FILE expected",
                )
                return None
            return InputRule(entry.key, InputKind.PARAMETER, name)


def _template_rule(
    text: JobText, entry: Entry, path: Path, name: str, columns: Collection[str] | None
) -> InputRule | None:
    # bytes that are not UTF-8 go through as they are
    template = path.read_bytes().decode(errors="surrogateescape")
    try:
        return InputRule(entry.key, InputKind.TEMPLATE, Pattern.parse(template, columns))
    except PatternError as error:
        tally = Tally(text.shown(name))
        for problem in error.problems:
            tally.add(template.count("\n", 0, problem.offset) + 1, problem.text)
        text.mistakes += tally
        return None


def read_results(text: JobText, columns: Collection[str] | None) -> tuple[ResultRule, ...]:
    """``[result]``: name = stdout, stderr or a file."""
    fields = text.fields("result")
    if "result" not in text.sections:
        return _DEFAULT_RESULTS
    if not fields.entries:
        text.mistake(fields.line, "[result] names no result, one like output = stdout expected")
    rules: list[ResultRule] = []
    for entry in list(fields.entries.values()):
        if not _RESULT_NAME.fullmatch(entry.key):
            fields.mistake(entry, "is no name for a result, letters, digits, '_-.' expected")
        elif entry.key in _TAKEN_NAMES:
            fields.mistake(entry, f"cannot be the name of a result: {_TAKEN_NAMES[entry.key]}")
            continue
        if fields.string(entry.key) is not None:
            problem = _ticket_path_problem(entry.value) or _variable_problem(entry.value, columns)
            if problem:
                fields.mistake(entry, f"'{entry.value}' {problem}")
        rules.append(ResultRule(entry.key, entry.value))
    return tuple(rules)


def read_tests(
    text: JobText, results: Collection[ResultRule]
) -> tuple[tuple[Test, ...], FunctionRef | None]:
    """``[validate]``: result name = ready-made tests; ``function = FILE:NAME``."""
    fields = text.fields("validate")
    names = [rule.name for rule in results]
    fields.only([*names, "function"], expected=_expected(names, "function"))
    tests: list[Test] = []
    for name in names:
        entry = fields.string(name)
        if entry is not None:
            tests += _tests(fields, entry)
    return tuple(tests), _function(fields)


def _expected(results: Iterable[str], *others: str) -> str:
    """The keys of a section that has one for each result, for people who do not know them."""
    return one_of([f"the name of a result ({', '.join(results)}; see [result])", *others])


def _tests(fields: Fields, entry: Entry) -> Iterator[Test]:
    """The tests in one value; ``match`` takes all up to the next ``/`` that ends a word."""
    place = 0
    words = [kind.value for kind in TestKind]
    while found := _WORD.search(entry.value, place):
        place, word = found.end(), found[0]
        if word not in words:
            hint = did_you_mean(word, words)
            fields.mistake(
                entry,
                f"unknown test '{word}'{hint}, non_empty, one_line, number or match /REGEX/ "
                "expected",
            )
            continue
        kind, regex = TestKind(word), ""
        if kind is TestKind.MATCH:
            whole = _MATCH.match(entry.value, found.start())
            if whole is None:
                fields.mistake(entry, r"match /REGEX/ expected, with \/ for a / before a blank")
                return
            place, regex = whole.end(), whole[1]
            try:
                re.compile(regex)
            except re.error as error:
                fields.mistake(entry, f"/{regex}/ is no regular expression: {error}")
                continue
        yield Test(entry.key, kind, regex)


class Collecting(NamedTuple):
    """The ``[collect]`` section."""

    rules: tuple[CollectRule, ...]
    function: FunctionRef | None
    failed: Path | None
    by_completion: bool


def read_collect(text: JobText, results: Collection[ResultRule]) -> Collecting:
    """``[collect]``: result name = rule and file; failed, function, order.

    To be called last: no collected file may be one that the job reads.
    """
    fields = text.fields("collect")
    names = [rule.name for rule in results]
    others = ("failed", "function", "order")
    fields.only([*names, *others], expected=_expected(names, *others))
    function = _function(fields)
    kinds = {kind.value: kind for kind in CollectKind}
    targets: dict[Path, Entry] = {}
    rules: list[CollectRule] = []
    for name in names:
        entry = fields.string(name)
        if entry is None:
            continue
        word, *rest = entry.value.split(maxsplit=1)
        if word not in kinds or not rest:
            hint = did_you_mean(word, kinds) if word not in kinds else ""
            fields.mistake(entry, f"'{entry.value}'{hint}: {', '.join(kinds)} and a file expected")
            continue
        path = _target(fields, entry, rest[0], targets)
        rules.append(CollectRule(name, kinds[word], path))
    failed = fields.string("failed")
    if failed and failed.value.split()[0] in kinds and " " in failed.value:
        fields.mistake(failed, f"'{failed.value}': a file alone expected, it is always a table")
    return Collecting(
        rules=tuple(rules),
        function=function,
        failed=_target(fields, failed, failed.value, targets) if failed else None,
        by_completion=fields.choice("order", {"parameters": False, "completion": True}, False),
    )


def _target(fields: Fields, entry: Entry, name: str, targets: dict[Path, Entry]) -> Path:
    """A file that will be written: nothing else may be in its place."""
    path = Path(os.path.normpath(fields.text.resolve(name)))
    other = targets.setdefault(path, entry)
    if other is not entry:
        fields.mistake(entry, f"{name} is written by '{other.key}' in line {other.line} already")
    elif path in fields.text.sources:
        fields.mistake(entry, f"{name} would be written over: {fields.text.sources[path]} reads it")
    elif os.path.isdir(path):
        fields.mistake(entry, f"{name} is a folder, a file was expected")
    elif os.path.exists(path) and not os.path.isfile(path):
        fields.mistake(entry, f"{name} is a device or a pipe, a file was expected")
    elif not os.path.isdir(path.parent):
        fields.mistake(entry, f"{name} cannot be written: there is no folder {path.parent}")
    else:
        # The folder, too: files are made anew beside the old one, and renamed.
        for needed in (path.parent, path):
            if needed.exists() and not os.access(needed, os.W_OK, effective_ids=True):
                fields.mistake(entry, f"{name} cannot be written: no permission for {needed}")
                break
    return path


def _function(fields: Fields) -> FunctionRef | None:
    entry = fields.string("function")
    if entry is None:
        return None
    file, colon, name = (part.strip() for part in entry.value.rpartition(":"))
    if not colon or not file or not name:
        fields.mistake(entry, f"'{entry.value}': FILE:NAME expected, as in checks.py:validate")
        return None
    path = fields.file(entry, file)
    if path is None:
        return None
    problem = function_problem(path.read_bytes(), name)
    if problem is None:
        return FunctionRef(path, name)
    line, what = problem
    if line:
        fields.text.mistakes.append(Mistake(fields.text.shown(file), line, what))
    else:
        fields.mistake(entry, f"{file} {what}")
    return None


def _ticket_path_problem(name: str) -> str | None:
    """Why a name cannot be that of a file in the task's own folder (SPEC section 5), or None."""
    if name.startswith("/"):
        return "is absolute, a path in the task's own folder expected"
    if ".." in name.split("/"):
        return "leads out of the task's own folder, a path without '..' expected"
    if name.endswith(("/", "/.")) or name == ".":
        return "names a folder, a file was expected"
    return None


def _variable_problem(name: str, columns: Collection[str] | None) -> str | None:
    """A parameter in a place where none is filled in: the file would be missed in every task."""
    for column in columns or ():
        if re.search(rf"\$(?:{column}\b|\{{{column}\}})", name):
            return (
                f"has ${column} in it, but nothing is filled in there: "
                "every task has a folder of its own, so give it a fixed name"
            )
    return None
