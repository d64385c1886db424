"""The wire examples of tests/vectors, and the reader of tasks that only tests need."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pexecd.protocol.sections import (
    ContentBegun,
    ContentEnded,
    Data,
    MalformedBodyError,
    Pair,
    Section,
    Sections,
)
from pexecd.protocol.wire import InputFile, ResultFile, TaskMessage

FOLDER = Path(__file__).parents[2] / "vectors"


def examples(group: str) -> Iterator[tuple[str, bytes, dict[str, Any]]]:
    """Name, bytes and entry in the index of all examples of a group."""
    for entry in json.loads((FOLDER / "index.json").read_text(encoding="utf-8"))[group]:
        yield entry["file"], (FOLDER / entry["file"]).read_bytes(), entry


def task_from_index(value: dict[str, Any]) -> TaskMessage:
    return TaskMessage(
        ticket=value["ticket"],
        timeout=value["timeout"],
        command_line=value["command_line"],
        inputs=tuple(
            InputFile(item["file"], base64.b64decode(item["content"])) for item in value["inputs"]
        ),
        results=tuple(ResultFile(item["name"], item["file"]) for item in value["results"]),
        task=value["task"],
        environment=tuple((name, text) for name, text in value["environment"]),
    )


def decode_task(body: bytes) -> TaskMessage:
    """Read a task as a client does."""
    head: dict[str, str] = {}
    environment: list[tuple[str, str]] = []
    sections: list[tuple[str, dict[str, str], list[bytes]]] = []
    reader = Sections(max_line=len(body))
    for token in [*reader.feed(body), *reader.finish()]:
        match token:
            case Section(name):
                sections.append((name, {}, []))
            case Pair("Environment", value):
                variable, _, text = value.partition("=")
                environment.append((variable, text))
            case Pair(key, value):
                (sections[-1][1] if sections else head)[key] = value
            case ContentBegun():
                sections[-1][2].append(b"")
            case Data(data):
                sections[-1][2].append(data)
            case ContentEnded():
                pass
    try:
        message = TaskMessage(
            ticket=int(head["Ticket"]),
            timeout=int(head["Timeout"]),
            command_line=head["CommandLine"],
            inputs=tuple(
                InputFile(pairs["File"], b"".join(content))
                for name, pairs, content in sections
                if name == "Input" and content
            ),
            results=tuple(
                ResultFile(pairs["Name"], pairs["File"])
                for name, pairs, content in sections
                if name == "Result" and not content
            ),
            task=int(head.get("Task", "0")),
            environment=tuple(environment),
        )
    except (KeyError, ValueError) as error:
        raise MalformedBodyError(repr(error)) from None
    if not message.results or len(message.inputs) + len(message.results) != len(sections):
        raise MalformedBodyError("sections")
    return message
