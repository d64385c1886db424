"""The job file: read, checked as a whole, resolved to a ``Job`` (SPEC section 3)."""

# Tests: tests/unit/jobs/test_jobfile.py

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from functools import partial
from pathlib import Path

from pexecd.errors import BadInputError, Mistake
from pexecd.jobs.cluster import HERE, read_cluster
from pexecd.jobs.fields import Fields, JobText, platform_word
from pexecd.jobs.mistakes import did_you_mean
from pexecd.jobs.reach import (
    advertise_problem,
    is_loopback,
    is_secure,
    listen_problem,
    needs_tunnel,
)
from pexecd.jobs.rules import read_collect, read_inputs, read_results, read_tests
from pexecd.jobs.table import check_table, read_columns
from pexecd.jobs.templates import NAME, CommandPattern, Pattern, PatternError
from pexecd.jobs.values import HostSpec, InputKind, InputRule, Job, WorkerRule

_SECTIONS = (
    "job", "worker", "env", "input", "result", "validate", "collect", "client", "ssh",
)  # fmt: skip
_KEYS = {
    "job": (
        "name", "cluster", "parameters", "listen", "advertise", "timeout", "attempts",
        "duplicates", "stop_after", "give_up", "max_result", "state",
    ),
    "worker": ("name", "command", "executable", "shell", "nice"),
    "client": ("ping", "patience", "delete_worker", "delete_client", "keep_failed"),
    "ssh": ("config",),
}  # fmt: skip

_WORD = re.compile(r"[A-Za-z0-9._-]+")

#: What the protocol says for no limit; nothing is longer.
_YEAR = 31_536_000


def read_job(path: Path) -> Job:
    """Read a job file and all that it names, and check everything.

    It reads the whole parameter table once and so may take a second; it blocks.

    Raises:
        BadInputError: with every mistake in these files, sorted by file and line.
    """
    text = JobText(path)
    job = _read(text)
    if text.mistakes:
        raise BadInputError(sorted(text.mistakes, key=lambda one: (one.file, one.line)))
    return job


def _read(text: JobText) -> Job:
    """The job; where there were mistakes something stands in, so that all are found."""
    _check_names(text)
    job, client, ssh = text.fields("job"), text.fields("client"), text.fields("ssh")
    name = _job_name(job)
    parameters = job.file(job.required("parameters", "the file of the parameter table"))
    columns = _columns(parameters)
    worker = _worker(text, name, columns)
    inputs = read_inputs(text, columns)
    results = read_results(text, columns)
    tests, validate = read_tests(text, results)
    listen = job.matching("listen", listen_problem)
    advertise = job.matching("advertise", partial(advertise_problem, secure=is_secure(listen)))
    cluster, hosts = _hosts(text, listen, advertise)
    ssh_config = ssh.file(ssh.string("config"))
    collect = read_collect(text, results)
    tasks, table_digest = _check_table(text, parameters, inputs)
    return Job(
        path=text.path.absolute(),
        folder=text.folder,
        name=name,
        parameters=parameters or text.folder,
        columns=columns or (),
        worker=worker,
        hosts=hosts,
        state=_state(job, name),
        results=results,
        inputs=inputs,
        env=_env(text, columns if worker.shell else None),
        cluster=cluster,
        listen=listen,
        advertise=advertise,
        timeout=job.whole("timeout", 0, most=_YEAR, unit="seconds"),
        attempts=job.whole("attempts", 3, least=1),
        duplicates=job.whole("duplicates", 2, least=1),
        stop_after=job.whole("stop_after", 20),
        give_up=job.whole("give_up", 600, least=1, unit="seconds"),
        max_result=job.whole("max_result", None, least=1, most=10**18, unit="bytes"),
        tests=tests,
        validate=validate,
        collect=collect.rules,
        collect_function=collect.function,
        failed=collect.failed,
        by_completion=collect.by_completion,
        ping=client.whole("ping", 10, most=_YEAR, unit="seconds"),
        patience=client.whole("patience", 3600, least=1, unit="seconds"),
        delete_worker=client.yes_no("delete_worker", True),
        delete_client=client.yes_no("delete_client", True),
        keep_failed=client.yes_no("keep_failed", False),
        ssh_config=ssh_config,
        tasks=tasks,
        table_digest=table_digest,
    )


def _check_names(text: JobText) -> None:
    """Sections and keys that nobody knows; the other sections' keys are free."""
    for section in text.sections.values():
        if section.name not in _SECTIONS:
            hint = did_you_mean(section.name, _SECTIONS)
            expected = ", ".join(f"[{name}]" for name in _SECTIONS)
            text.mistake(
                section.line, f"unknown section [{section.name}]{hint}, {expected} expected"
            )
    home = {key: name for name, keys in _KEYS.items() for key in keys}
    for name, keys in _KEYS.items():
        text.fields(name).only(
            keys,
            "executable." if name == "worker" else None,
            home,
            "config = FILE (an ssh_config, where users, ports and keys stand)"
            if name == "ssh"
            else None,
        )


def _job_name(job: Fields) -> str:
    default = job.text.path.name.removesuffix(".ini")
    entry = job.string("name")
    name = entry.value if entry else default
    if not _WORD.fullmatch(name) or not name.strip("."):
        problem = f"'{name}' is no name of a job, letters, digits, '.', '_' and '-' expected"
        if entry:
            job.mistake(entry, problem)
        else:
            job.text.mistake(0, f"{problem}: give [job] a name")
    return name


def _state(job: Fields, name: str) -> Path:
    entry = job.string("state")
    state = job.text.resolve(entry.value if entry else f"{name}.pexecd")
    problem = _state_problem(state)
    if problem:
        job.text.mistake(entry.line if entry else 0, f"state: {state} {problem}")
    return state


def _state_problem(state: Path) -> str | None:
    """Why the state cannot be kept there, as far as it can be told without making it."""
    if os.path.exists(state) and not os.path.isdir(state):
        return "is a file, a folder (or nothing yet) was expected"
    if os.path.lexists(state):
        return None  # whoever claims it looks closer
    there = next(one for one in state.parents if os.path.lexists(one))
    if os.path.isdir(there) and not os.access(there, os.W_OK | os.X_OK, effective_ids=True):
        return (
            f"cannot be written: no permission for {there}, or it is read-only; name another place "
            "with state = in [job]"
        )
    return None


def _columns(parameters: Path | None) -> tuple[str, ...] | None:
    """The headline; None when it is not known, so that variables cannot be checked."""
    if parameters is None:
        return None
    try:
        return read_columns(parameters)
    except BadInputError:
        return None  # ``check_table`` will say why


def _check_table(
    text: JobText, parameters: Path | None, inputs: Iterable[InputRule]
) -> tuple[int, str]:
    """Check every line of the parameter table, and the input files that it names."""
    if parameters is None:
        return 0, ""
    patterns = {
        rule.file: rule.source
        for rule in inputs
        if rule.kind is InputKind.FILE and isinstance(rule.source, Pattern)
    }
    shown = text.shown(text.sections["job"].entries["parameters"].value)
    try:
        return check_table(parameters, text.folder, patterns, shown)
    except BadInputError as error:
        text.mistakes += error.mistakes
        return 0, ""


def _worker(text: JobText, job_name: str, columns: Collection[str] | None) -> WorkerRule:
    fields = text.fields("worker")
    shell = fields.yes_no("shell", False)
    command = _command(fields, shell, columns)
    executables = _executables(fields)
    given = any(key.partition(".")[0] == "executable" for key in fields.entries)
    named = fields.string("name")
    if named and (not _WORD.fullmatch(named.value) or named.value[0] in ".-"):
        fields.mistake(
            named,
            f"'{named.value}' is no name of a worker, letters, digits, '_', '.', '-' expected",
        )
    elif not named and given:
        text.mistake(
            fields.line, "[worker] has no 'name': the command begins with it to run the executable"
        )
    elif named and not given and _program(command, shell) == named.value:
        text.mistake(
            fields.line,
            f"[worker] has no 'executable', but its command begins with the worker's name "
            f"'{named.value}': give one, or another name if {named.value} is on the hosts already",
        )
    return WorkerRule(
        name=named.value if named else job_name,
        command=command,
        executables=executables,
        shell=shell,
        nice=fields.whole("nice", 10, least=-20, most=19),
    )


def _command(fields: Fields, shell: bool, columns: Collection[str] | None) -> CommandPattern:
    entry = fields.required("command", "what to run")
    if entry is None:
        return CommandPattern.for_shell("")
    if shell:
        return CommandPattern.for_shell(entry.value)
    try:
        return CommandPattern.parse(entry.value, columns)
    except PatternError as error:
        for problem in error.problems:
            fields.mistake(entry, problem.text)
        return CommandPattern.for_shell("")


def _program(command: CommandPattern, shell: bool) -> str | None:
    """The first word of a command, as far as it can be told without being the shell."""
    return next(iter(command.text.split()), None) if shell else command.program


def _executables(fields: Fields) -> dict[str, Path]:
    """Platform to executable; ``executable`` alone is for any."""
    executables: dict[str, Path] = {}
    lines: dict[str, int] = {}
    for entry in list(fields.entries.values()):
        key, dot, word = entry.key.partition(".")
        if key != "executable":
            continue
        platform = "any" if not dot or word == "any" else platform_word(word)
        if platform is None:
            fields.mistake(
                entry, f"'{word}' is no platform, any or a word like linux-x86_64 expected"
            )
        elif platform in lines:
            fields.mistake(
                entry, f"the executable for {platform} was given in line {lines[platform]}"
            )
        else:
            lines[platform] = entry.line
        path = fields.file(fields.string(entry.key))
        problem = path and _unstartable(path)
        if problem:
            fields.mistake(entry, f"{entry.value} {problem}")
        if platform is not None and path is not None:
            executables.setdefault(platform, path)
    return executables


def _unstartable(path: Path) -> str | None:
    """Why no host could start this executable, as far as its first line tells, or None."""
    with path.open("rb") as file:
        first = file.readline(256)
    if not first:
        return "is empty, a program was expected"
    if first.startswith(b"#!") and first.endswith(b"\r\n"):
        return "has Windows line ends (CRLF), so its #! interpreter is not found, LF expected"
    if first.startswith(b"\xef\xbb\xbf#!"):
        return "begins with a byte order mark, '#!' expected first"
    return None


def _env(text: JobText, columns: Collection[str] | None) -> dict[str, str]:
    """``[env]``; ``columns`` are the parameters that become variables, too."""
    fields = text.fields("env")
    for entry in fields.entries.values():
        if not NAME.fullmatch(entry.key):
            fields.mistake(entry, "is no name of a variable, letters, digits and '_' expected")
        elif entry.key.startswith("PEXEC_"):
            fields.mistake(entry, "names that begin with PEXEC_ are set by pexecd itself")
        elif entry.key in (columns or ()):
            fields.mistake(entry, "is a parameter, too, and with shell = yes both are variables")
    for column in columns or ():
        if column.startswith("PEXEC_"):
            text.mistake(
                text.fields("worker").entries["shell"].line,
                f"shell = yes makes the parameter {column} a variable, but names that begin with "
                "PEXEC_ are set by pexecd itself: give it another name in the table",
            )
    return {entry.key: entry.value for entry in fields.entries.values()}


def _hosts(
    text: JobText, listen: str | None, advertise: str | None
) -> tuple[Path | None, tuple[HostSpec, ...]]:
    fields = text.fields("job")
    entry = fields.string("cluster")
    if entry is None:
        return None, (HERE,)
    path = fields.file(entry)
    if path is None:
        return None, ()
    shown = text.shown(entry.value)
    hosts = read_cluster(path, shown, text.mistakes)
    if listen is None and "listen" in fields.entries:
        return path, hosts  # it is wrong, and that has been said
    text.mistakes += _out_of_reach(hosts, listen, advertise, shown)
    return path, hosts


def _out_of_reach(
    hosts: Iterable[HostSpec], listen: str | None, advertise: str | None, file: str
) -> Iterator[Mistake]:
    for host in hosts:
        by_hand = not host.start and not is_loopback(host.address)
        if by_hand and needs_tunnel(host, listen, advertise):
            problem = (
                f"host {host.name} cannot reach the master: with start=no there is no tunnel, and "
                "it listens on this computer alone; listen = ssl:PORT expected in [job]"
            )
            yield Mistake(file, host.line, problem)


def reread_hosts(job: Job) -> tuple[HostSpec, ...]:
    """Read a job's cluster file again, while the job runs.

    Raises:
        BadInputError: something is wrong with it.
    """
    assert job.cluster is not None
    file = str(job.cluster)
    mistakes: list[Mistake] = []
    try:
        hosts = read_cluster(job.cluster, file, mistakes)
    except OSError as error:
        raise BadInputError([Mistake(file, 0, f"cannot be read: {error.strerror}")]) from None
    mistakes += _out_of_reach(hosts, job.listen, job.advertise, file)
    if mistakes:
        raise BadInputError(mistakes)
    return hosts
