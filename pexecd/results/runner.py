"""The process in which a user's functions run: ``python runner.py FOLDER SCRATCH``.

A request a line comes by standard input, an answer a line goes to standard output, both
JSON. The user's code sees neither: its standard input is empty, and what it prints goes to
standard error, which the master logs. When the master is gone the input ends, and this
process ends at once with all its children.

A request: ``parameters``, ``results`` (name to ``{"data": base64}`` or ``{"path": ...}``),
``tests`` (``[result, kind, regex]`` each), and ``function`` (``[file, name, "validate" or
"collect"]``, or null).
An answer: ``{"valid": ..., "reason": ...}``, or ``{"error": ..., "traceback": ...}``.

This file imports nothing of pexecd, and little else: a small job waits for it to start.

What a ready-made test of ``[validate]`` accepts:

- ``non_empty``: at least one byte that is not white space.
- ``one_line``: exactly one line, with or without a line feed at its end. It may be empty
  (``non_empty`` is for that); no byte at all is no line. At most 1 MiB.
- ``number``: one line, blanks around it do not count, that is a finite number as Python's
  ``float`` reads it (no ``nan``, no ``inf``, no ``1_000``); at most 1000 characters.
- ``match /REGEX/``: Python's ``re.search`` finds it in the first 16 MiB, read as UTF-8.
"""

from __future__ import annotations

import base64
import io
import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any, BinaryIO, cast

#: Tests whose time does not depend on what a user wrote.
QUICK = frozenset({"non_empty", "one_line", "number"})

_LINE_BYTES = 1 << 20
_NUMBER_BYTES = 1000
_MATCH_BYTES = 16 << 20


#: So much of an error's text, and of a traceback's end, is told.
_MOST_REASON = 500
_MOST_TRACEBACK = 16_000


def check(kind: str, regex: str, stream: BinaryIO) -> str:
    """Test one result.

    Args:
        kind: the value of a ``TestKind``.
        regex: for ``match``.
        stream: the result, at its start.

    Returns:
        Why it is not valid; empty when it is.

    Raises:
        re.error: the regular expression is none.
    """
    if kind == "non_empty":
        return _non_empty(stream)
    if kind == "one_line":
        return _one_line(stream)
    if kind == "number":
        return _number(stream)
    return _match(regex, stream)


def _non_empty(stream: BinaryIO) -> str:
    while chunk := stream.read(_LINE_BYTES):
        if not chunk.isspace():
            return ""
    return "is empty"


def _one_line(stream: BinaryIO) -> str:
    data = stream.read(_LINE_BYTES + 1)
    if not data:
        return "is empty, not one line"
    line, end, more = data.partition(b"\n")
    if end and more:
        return "has more than one line"
    if len(line) > _LINE_BYTES - 1:
        return "has a line of more than 1 MiB"
    return ""


def _number(stream: BinaryIO) -> str:
    data = stream.read(_NUMBER_BYTES + 1)
    text = data.decode("ascii", "replace").strip()
    shown = text if len(text) <= 40 else text[:40] + "..."
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if len(data) > _NUMBER_BYTES or "_" in text or value - value != 0:  # inf - inf is nan
        return f"is not a number: '{shown}'" if shown else "is empty, not a number"
    return ""


def _match(regex: str, stream: BinaryIO) -> str:
    import re  # noqa: PLC0415

    text = stream.read(_MATCH_BYTES).decode("utf-8", "replace")
    return "" if re.search(regex, text) else f"does not match /{regex}/"


class Result:
    """One result, as the user's functions see it."""

    def __init__(self, source: Mapping[str, str], temporary: str) -> None:
        """Take what a request says of it; ``temporary`` is the file that ``path`` may make."""
        self._path = source.get("path")
        self._data = None if self._path else base64.b64decode(source["data"])
        self._temporary = temporary
        self._made = False

    @property
    def path(self) -> Any:
        """A file (``pathlib.Path``) with the result; only to be read, gone after the call."""
        from pathlib import Path  # noqa: PLC0415

        if self._path is None:
            self._path = self._temporary
            with open(self._path, "wb") as file:
                file.write(self._data or b"")
            self._made = True
        return Path(self._path)

    def open(self, mode: str = "r") -> IO[Any]:
        """The result as a file: ``r`` for text (UTF-8, what is none replaced), ``rb`` for bytes."""
        if mode not in ("r", "rt", "rb"):
            raise ValueError(f"a result can only be read, not opened with mode '{mode}'")
        stream: BinaryIO
        if self._data is None:
            assert self._path is not None
            stream = open(self._path, "rb")  # noqa: SIM115 - the caller closes it
        else:
            stream = io.BytesIO(self._data)
        return stream if mode == "rb" else io.TextIOWrapper(stream, "utf-8", "replace")

    def text(self) -> str:
        """The whole result as text (UTF-8, what is none replaced)."""
        with self.open() as file:
            return str(file.read())

    def forget(self) -> None:
        """Delete what ``path`` made."""
        if self._made and os.path.exists(self._temporary):
            os.unlink(self._temporary)


class Functions:
    """The user's functions, each file imported once."""

    def __init__(self, scratch: str) -> None:
        self._scratch = scratch
        self._modules: dict[str, Any] = {}

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Perform one request; an error of the user's code is an answer, too."""
        # the end of a name, for what it says of the file's kind; the number tells them apart
        results = {
            name: Result(source, f"{self._scratch}/{os.getpid()}-{number}-{name[-60:]}")
            for number, (name, source) in enumerate(request["results"].items())
        }
        doing = "a ready-made test"
        try:
            for name, kind, regex in request["tests"]:
                with results[name].open("rb") as stream:
                    reason = check(kind, regex, cast("BinaryIO", stream))
                if reason:
                    return {"valid": False, "reason": f"{name} {reason}"}
            if request["function"] is None:
                return {"valid": True, "reason": ""}
            path, name, kind = request["function"]
            doing = f"{os.path.basename(path)}:{name}"
            value = self._function(path, name)(request["parameters"], results)
            if kind == "collect":
                return {"valid": True, "reason": ""}
            if value is None:
                return {"error": f"{doing} returned None, not True or False", "traceback": ""}
            return {"valid": bool(value), "reason": "" if value else f"{doing} said no"}
        except BaseException as error:  # SystemExit of theirs is not ours
            return _told(error, doing)
        finally:
            for result in results.values():
                result.forget()

    def _function(self, path: str, name: str) -> Callable[..., object]:
        if path not in self._modules:
            import importlib.util  # noqa: PLC0415

            folder = os.path.dirname(path)
            if folder not in sys.path:
                sys.path.insert(0, folder)  # their own modules, beside the file
            stem = os.path.splitext(os.path.basename(path))[0]
            spec = importlib.util.spec_from_file_location(stem, path)
            if spec is None or spec.loader is None:
                raise ImportError(f"{path} is not a Python file: its name must end in .py")
            module = importlib.util.module_from_spec(spec)
            sys.modules[stem] = module
            spec.loader.exec_module(module)
            self._modules[path] = module
        function: Callable[..., object] = getattr(self._modules[path], name)
        return function


def _told(error: BaseException, doing: str) -> dict[str, str]:
    import traceback  # noqa: PLC0415

    said = str(error).strip().splitlines()
    reason = f"{doing} raised {type(error).__name__}" + (f": {said[0]}" if said else "")
    frames = error.__traceback__.tb_next if error.__traceback__ else None  # without ours
    text = "".join(traceback.format_exception(type(error), error, frames))
    return {"error": _utf8(reason[:_MOST_REASON]), "traceback": _utf8(text[-_MOST_TRACEBACK:])}


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def main(folder: str, scratch: str) -> None:
    """Answer requests until the input ends."""
    if os.getpgrp() != os.getpid():
        os.setsid()  # Ctrl-C is the master's; and all that they start can be ended with us
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.dup(1)
    empty = os.open(os.devnull, os.O_RDONLY)
    os.dup2(empty, 0)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    os.chdir(folder)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()

    def listen() -> None:
        for line in requests:
            lines.put(line)
        os.killpg(0, signal.SIGKILL)  # even in the middle of a function: nobody waits for it

    threading.Thread(target=listen, daemon=True).start()
    functions = Functions(scratch)
    while True:
        answer = functions.answer(json.loads(lines.get()))
        line = memoryview(json.dumps(answer).encode() + b"\n")
        while line:
            line = line[os.write(answers, line) :]


if __name__ == "__main__":
    main(*sys.argv[1:])
