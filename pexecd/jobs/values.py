"""A job as values: what the files of section 3 of SPEC say, checked and resolved.

Every path is absolute. Times are seconds, sizes bytes.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from pexecd.jobs.templates import CommandPattern, Pattern
from pexecd.units import Seconds


class InputKind(Enum):
    """Where the content of an input comes from."""

    #: The value of a parameter.
    PARAMETER = "parameter"
    #: A template, filled in: ``@FILE``.
    TEMPLATE = "template"
    #: A file as it is: ``<FILE``; its name may hold variables.
    FILE = "file"


class InputRule(NamedTuple):
    """A line of ``[input]``."""

    #: File name in the ticket's folder (may hold folders), or ``stdin``.
    file: str
    kind: InputKind
    #: PARAMETER: the name. TEMPLATE: its text, any bytes (``surrogateescape``). FILE: the
    #: pattern of its path, which counts from the job's folder.
    source: str | Pattern


class ResultRule(NamedTuple):
    """A line of ``[result]``."""

    name: str
    #: ``stdout``, ``stderr`` or a file; ``./stdout`` is a file.
    source: str


class TestKind(Enum):
    """The ready-made tests of ``[validate]``."""

    NON_EMPTY = "non_empty"
    ONE_LINE = "one_line"
    NUMBER = "number"
    MATCH = "match"


class Test(NamedTuple):
    """A ready-made test of one result."""

    result: str
    kind: TestKind
    #: The regular expression of MATCH, else empty.
    regex: str = ""


class FunctionRef(NamedTuple):
    """``FILE:NAME``, a user's Python function."""

    path: Path
    name: str


class CollectKind(Enum):
    """How a result is put into a collected file."""

    CONCAT = "concat"
    TABLE = "table"
    BLOCK = "block"


class CollectRule(NamedTuple):
    """A line of ``[collect]``: this result goes into that file."""

    result: str
    kind: CollectKind
    path: Path


class HostSpec(NamedTuple):
    """A line of the cluster file."""

    #: As written, without SLOTS/: what people see, and ``host=`` on the wire; ``:`` is this
    #: computer.
    name: str
    #: What ``ssh -G`` is asked about.
    address: str
    user: str | None = None
    port: int | None = None
    #: None: as many as it has cores that it may use.
    slots: int | None = None
    platform: str | None = None
    #: Path of the Python to start the client with.
    python: str | None = None
    #: Folder for client, worker and tickets.
    dir: str = "~/.cache/pexecd"
    #: Hosts with the same word and the same ``dir`` share that folder; None: it is found out.
    shared: str | None = None
    #: False: the client is started by hand.
    start: bool = True
    #: This computer, without SSH.
    local: bool = False
    #: Where it stands, for messages.
    line: int = 0


class WorkerRule(NamedTuple):
    """The ``[worker]`` section."""

    #: A command whose first word is this runs the executable for the host's platform.
    name: str
    #: With ``shell``: ``/bin/sh``, ``-c`` and the command as it is written.
    command: CommandPattern
    #: Platform (or ``any``) to executable; empty: a program that is on the hosts.
    executables: Mapping[str, Path] = MappingProxyType({})
    shell: bool = False
    nice: int = 10


class Job(NamedTuple):
    """A whole job file, its cluster file included."""

    path: Path
    folder: Path
    name: str
    parameters: Path
    #: The columns of the parameter table, in order.
    columns: tuple[str, ...]
    worker: WorkerRule
    hosts: tuple[HostSpec, ...]
    state: Path
    results: tuple[ResultRule, ...] = (ResultRule("output", "stdout"),)
    inputs: tuple[InputRule, ...] = ()
    env: Mapping[str, str] = MappingProxyType({})
    cluster: Path | None = None
    listen: str | None = None
    advertise: str | None = None
    timeout: Seconds = 0.0
    attempts: int = 3
    duplicates: int = 2
    stop_after: int = 20
    give_up: Seconds = 600.0
    max_result: int | None = None
    tests: tuple[Test, ...] = ()
    validate: FunctionRef | None = None
    collect: tuple[CollectRule, ...] = ()
    collect_function: FunctionRef | None = None
    failed: Path | None = None
    #: True: by completion; False: by parameters.
    by_completion: bool = False
    ping: Seconds = 10.0
    patience: Seconds = 3600.0
    delete_worker: bool = True
    delete_client: bool = True
    keep_failed: bool = False
    ssh_config: Path | None = None
    #: How many parameter sets the table had when it was checked, and its SHA-256.
    tasks: int = 0
    table_digest: str = ""


class FileContent(NamedTuple):
    """Content that stays on disk until it is sent."""

    path: Path


class Rendered(NamedTuple):
    """One task, filled in."""

    #: The arguments; with ``shell = yes`` exactly ``["/bin/sh", "-c", COMMAND]``.
    arguments: tuple[str, ...]
    #: Variables beyond the job's ``[env]``: the parameters, with ``shell = yes``.
    environment: Mapping[str, str]
    #: File name (or ``stdin``) and content.
    inputs: tuple[tuple[str, bytes | FileContent], ...]
