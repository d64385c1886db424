"""``pexecd check``: look at a job's files, show what would run, try its hosts; start nothing."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from pexecd.errors import BAD_INPUT, BadInputError, spoken
from pexecd.jobs import Renderer, read_job, read_table
from pexecd.jobs.doubts import doubts
from pexecd.jobs.reach import is_secure, listens_on_loopback
from pexecd.jobs.templates import Pattern
from pexecd.jobs.values import HostSpec, InputKind, InputRule, Job, Rendered

#: So many commands are shown.
SHOWN = 3


def check_job(path: Path, *, as_json: bool, hosts: bool = False) -> int:
    """Check a job and print what is in force.

    Args:
        path: the job file.
        as_json: print a JSON object instead of lines.
        hosts: try every host, too.

    Returns:
        The exit status: 0, or 2 when there are mistakes, or 3 when no host can be used.
    """
    try:
        job = read_job(path)
        first = list(islice(read_table(job), SHOWN))
    except BadInputError as error:
        if as_json:
            mistakes = [
                {"file": one.file, "line": one.line, "text": one.text} for one in error.mistakes
            ]
            json.dump({"ok": False, "mistakes": mistakes}, sys.stdout, indent=1)
            print()
        else:
            print(error, file=sys.stderr)
        return BAD_INPUT
    renderer = Renderer(job)
    commands = [_command(renderer.render(cells)) for cells in first]
    found = warnings(job)
    if as_json:
        report = {
            "ok": True,
            "tasks": job.tasks,
            "commands": commands,
            "settings": dict(settings(job)),
            "warnings": found,
        }
        status = 0
        if hosts:
            from pexecd.cli import hosts as trying  # noqa: PLC0415 - only where it is asked for

            findings = trying.try_hosts(job)
            report["hosts"] = trying.as_json(findings)
            status = trying.status_of(findings)
        json.dump(report, sys.stdout, indent=1)
        print()
        return status
    print(f"{path}: all is well, {job.tasks} tasks. The first commands:")
    for command in commands:
        print(f"  {command}")
    print("Settings in force:")
    for name, value in settings(job):
        print(f"  {name} = {value}")
    for warning in found:
        print(f"warning: {warning}", file=sys.stderr)
    if not hosts:
        return 0
    from pexecd.cli import hosts as trying  # noqa: PLC0415

    print("Hosts:", flush=True)
    findings = trying.try_hosts(job)
    trying.print_findings(findings, sys.stdout)
    return trying.status_of(findings)


def settings(job: Job) -> Iterator[tuple[str, Any]]:
    """The settings in force, in the order and words of the job file."""
    yield "name", job.name
    if job.cluster:
        yield "cluster", str(job.cluster)
    yield "hosts", ", ".join(map(_host, job.hosts))
    yield "parameters", f"{job.parameters} ({', '.join(job.columns)})"
    yield "listen", job.listen or "a free port on loopback"
    if job.advertise:
        yield "advertise", job.advertise
    for name in ("timeout", "attempts", "duplicates", "stop_after", "give_up"):
        value = getattr(job, name)
        yield name, f"{value:g}"
    yield "max_result", "no limit" if job.max_result is None else str(job.max_result)
    yield "state", str(job.state)
    yield "worker", job.worker.name
    for platform, path in job.worker.executables.items():
        yield f"executable.{platform}", str(path)
    yield "shell", _yes_no(job.worker.shell)
    yield "nice", str(job.worker.nice)
    for name, text in job.env.items():
        yield f"env {name}", text
    for rule in job.inputs:
        yield f"input {rule.file}", _input(rule)
    for result in job.results:
        yield f"result {result.name}", result.source
    for test in job.tests:
        yield f"validate {test.result}", f"{test.kind.value} {test.regex}".rstrip()
    if job.validate:
        yield "validate function", f"{job.validate.path}:{job.validate.name}"
    for collect in job.collect:
        yield f"collect {collect.result}", f"{collect.kind.value} {collect.path}"
    if job.collect_function:
        yield "collect function", f"{job.collect_function.path}:{job.collect_function.name}"
    if job.failed:
        yield "failed", str(job.failed)
    yield "order", "completion" if job.by_completion else "parameters"
    yield "ping", f"{job.ping:g}"
    yield "patience", f"{job.patience:g}"
    for name in ("delete_worker", "delete_client", "keep_failed"):
        yield name, _yes_no(getattr(job, name))
    if job.ssh_config:
        yield "ssh config", str(job.ssh_config)


def warnings(job: Job) -> list[str]:
    """What works, but should be known."""
    found = list(doubts(job))
    if not listens_on_loopback(job.listen) and not is_secure(job.listen):
        found.append(
            f"listen = {job.listen}: hosts and master speak plain HTTP; whoever can read the "
            "network between them can read parameters and results, and send results of his own; "
            "with listen = ssl:PORT they use TLS, and without listen each host has a tunnel in "
            "its SSH connection"
        )
    return found


def _command(rendered: Rendered) -> str:
    """A command that can be tried in a terminal; a shell's parameters are its variables."""
    variables = [f"{name}={value}" for name, value in rendered.environment.items()]
    return shlex.join([*(["env", *variables] if variables else []), *rendered.arguments])


def _host(host: HostSpec) -> str:
    name = spoken(host.name)
    return f"{name} ({host.slots} slots)" if host.slots else name


def _input(rule: InputRule) -> str:
    """As it was written, but for templates, of which only the text is known by now."""
    if rule.kind is InputKind.TEMPLATE:
        return "a template"
    return f"<{rule.source.text}" if isinstance(rule.source, Pattern) else rule.source


def _yes_no(value: bool) -> str:
    return "yes" if value else "no"
