"""``pexecd``: the command and its verbs. Each verb imports what it needs, so that help is quick."""

from __future__ import annotations

import gc
import io
import sys
from pathlib import Path

import click

from pexecd import __version__
from pexecd.core.values import Outcome
from pexecd.errors import BAD_INPUT, BadInputError

JOB = click.argument("job", type=click.Path(path_type=Path))


class _Verbs(click.Group):
    """The verbs; one who gives a job without a verb is told which there are."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        first = args[0]
        if first not in self.commands and (first.endswith(".ini") or Path(first).exists()):
            ctx.fail(f"'{first}' is no command: pexecd run {first}, or pexecd check {first}")
        return super().resolve_command(ctx, args)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="pexecd")
def main() -> None:
    """Run a program once for every line of a table, on all your computers at once.

    Exit status: 0 every task succeeded; 1 some failed; 2 bad files or usage; 3 no host
    could be used; 130 interrupted.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):  # it may be closed
        # What a terminal cannot show must not stop us, as Python has it for stderr.
        sys.stdout.reconfigure(errors="backslashreplace")


@main.command()
@JOB
@click.option("--fresh", is_flag=True, help="Throw away what an earlier run has stored.")
@click.option(
    "--keep-old",
    is_flag=True,
    help="Keep earlier results though worker, results or validation have changed.",
)
@click.option("--retry-failed", is_flag=True, help="Try the tasks again that have failed.")
@click.option(
    "--recollect", is_flag=True, help="Call the collect function again for those where it raised."
)
@click.option(
    "--pilot",
    type=click.IntRange(min=1),
    metavar="N",
    help="Run N tasks spread over the table and no others; estimate the whole.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the statistics as JSON at the end.")
@click.option("--verbose", "-v", is_flag=True, help="Show the master's log as it is written.")
def run(job: Path, pilot: int | None, as_json: bool, verbose: bool, **start: bool) -> None:
    """Work on JOB until every task has its result; show progress, then statistics.

    Ctrl-C stops workers and clients; the same command goes on later. When lines of the table
    were added, moved or removed meanwhile, only the new ones run.
    """
    # What is loaded now stays; looking for garbage meanwhile would take a twentieth of the start.
    gc.disable()
    try:
        from pexecd.cli.early import begin  # noqa: PLC0415

        early = begin(job)
        from pexecd.cli.run import run_job  # noqa: PLC0415
        from pexecd.state import Start  # noqa: PLC0415

        status = run_job(early, Start(**start, pilot=pilot or 0), as_json=as_json, verbose=verbose)
    except BadInputError as error:
        print(error, file=sys.stderr)
        status = BAD_INPUT
    except KeyboardInterrupt:  # before the run catches it
        status = _interrupted()
    sys.exit(status)


@main.command()
@JOB
@click.option("--hosts", is_flag=True, help="Try every host, too: ready, or why not.")
@click.option("--json", "as_json", is_flag=True, help="Print what was found as JSON.")
def check(job: Path, hosts: bool, as_json: bool) -> None:
    """Check the files of JOB and show its first commands and settings; start nothing.

    Exit status: 0 all is well; 2 bad files; 3 with --hosts when no host could be used.
    """
    try:
        from pexecd.cli.check import check_job  # noqa: PLC0415

        status = check_job(job, as_json=as_json, hosts=hosts)
    except KeyboardInterrupt:
        status = _interrupted()
    sys.exit(status)


def _interrupted() -> int:
    """The exit status; click's own answer is 1, which means that tasks failed."""
    click.echo("pexecd: interrupted; nothing was started", err=True)
    return Outcome.INTERRUPTED.value


if __name__ == "__main__":
    main()
