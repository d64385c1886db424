"""The client's own reader and writer against the wire examples that the master passes too."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest

from tests.client.conftest import load_client

VECTORS = Path(__file__).resolve().parents[1] / "vectors"
INDEX: dict[str, list[dict[str, Any]]] = json.loads((VECTORS / "index.json").read_text())


client = load_client()


class Kept(io.BytesIO):
    """Can be read after it was closed."""

    content = b""

    def close(self) -> None:
        if not self.closed:
            self.content = self.getvalue()
        super().close()


def name(vector: dict[str, Any]) -> str:
    return str(vector["file"])


def canonical(group: str) -> list[dict[str, Any]]:
    return [vector for vector in INDEX[group] if vector.get("canonical")]


@pytest.mark.parametrize("step", [0, 1, 7, 1 << 20])
@pytest.mark.parametrize("vector", INDEX["tasks"], ids=name)
def test_tasks(vector: dict[str, Any], step: int) -> None:
    data = (VECTORS / vector["file"]).read_bytes()
    if step:
        reader = client.TaskReader(Kept)
        for at in range(0, len(data), step):
            reader.feed(data[at : at + step])
        task = reader.result()
    else:  # as in the answer to an exchange, where another of its kind came before it
        answer = client.AnswerReader(Kept)
        answer.feed(b"task %d\n%s\n" % (len(data), data) * 2)
        task = answer.tasks[1]
    if vector.get("verdict"):
        assert isinstance(task.error, ValueError)
        return
    assert task.error is None
    value = vector["value"]
    assert task.ticket == str(value["ticket"])
    assert int(task.number or 0) == value["task"]
    assert task.timeout == value["timeout"]
    assert task.command == value["command_line"].encode()
    assert [[key.decode(), text.decode()] for key, text in task.environment] == [
        list(pair) for pair in value["environment"]
    ]
    assert [(file.decode(), content.content) for file, content in task.inputs] == [
        (each["file"], base64.b64decode(each["content"])) for each in value["inputs"]
    ]
    assert [(key.decode(), file.decode()) for key, file in task.results] == [
        (each["name"], each["file"]) for each in value["results"]
    ]


@pytest.mark.parametrize("vector", canonical("uploads"), ids=name)
def test_uploads(vector: dict[str, Any], tmp_path: Path) -> None:
    record = client.Record(str(tmp_path), "x", {"ticket": "10000", "results": []})
    (tmp_path / "x").mkdir()
    for number, each in enumerate(vector["value"]):
        (tmp_path / "x" / str(number)).write_bytes(base64.b64decode(each["content"]))
        record.data["results"].append([each["name"], str(number)])
    body = record.results_body()
    data = b"".join(iter(body.read, b""))
    assert data == (VECTORS / vector["file"]).read_bytes()
    assert body.length == len(data)


@pytest.mark.parametrize("vector", canonical("failures"), ids=name)
def test_failures(vector: dict[str, Any]) -> None:
    wanted = (VECTORS / vector["file"]).read_bytes()
    value = vector["value"]
    failure = [("Kind", wanted.split(b"\n")[0].partition(b"=")[2].decode())]
    failure.append(("Reason", value["reason"]))
    if value["exit_status"] >= 0:
        failure.append(("Exit", value["exit_status"]))
    if value["signal"]:
        failure.append(("Signal", value["signal"]))
    if value["seconds"] is not None:
        failure.append(("Seconds", value["seconds"]))
    tail = base64.b64decode(value["stderr"]) if b"\nLength=" in wanted else None
    assert client.failure_body(failure, tail) == wanted


@pytest.mark.parametrize("vector", INDEX["config"], ids=name)
def test_config(vector: dict[str, Any]) -> None:
    data = (VECTORS / vector["file"]).read_bytes()
    assert [list(pair) for pair in client.read_pairs(data)] == vector["value"]


@pytest.mark.parametrize("step", [1, 7, 1 << 20])
def test_a_row_of_tasks_that_are_alike(step: int) -> None:
    """What is like a task before it is read at a glance; what only looks so is not."""
    text = b"Ticket=%d\nTimeout=60%d\nTask=%d\nEnvironment=A=b=c \nCommandLine=echo  %d \n"
    text += b"[%s]\nName=output\nFile=stdout\n"
    tasks = [text % (each, each, each, each, b"Result") for each in (1, 2, 3)]
    tasks.append(text % (4, 4, 4, 4, b"Output"))
    tasks.append(tasks[0].replace(b"Timeout", b"Timeouts").replace(b"Ticket=1", b"Ticket=5"))
    answer = client.AnswerReader(Kept)
    data = b"".join(b"task %d\n%s\n" % (len(task), task) for task in tasks) + b"over 9\n"
    for at in range(0, len(data), step):
        answer.feed(data[at : at + step])
    assert answer.over == ["9"]
    assert [task.ticket for task in answer.tasks] == ["1", "2", "3", "4", "5"]
    assert [task.error is None for task in answer.tasks] == [True, True, True, False, True]
    for task in answer.tasks[:3]:
        assert task.number == task.ticket.encode()
        assert task.timeout == 600 + int(task.ticket)
        assert task.command == b"echo  " + task.ticket.encode()
        assert task.environment == [(b"A", b"b=c ")]
        assert task.results == [(b"output", b"stdout")]
    with pytest.raises(ValueError):  # noqa: PT011
        answer.feed(b"task %d\n%s\n" % (len(tasks[0]) - 1, tasks[0]) * 2)
