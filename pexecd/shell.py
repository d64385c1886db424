"""Scripts for hosts whose login shell may be anything.

sshd hands a command to the user's login shell, which may be csh, fish or something else
with quoting rules of its own. It gets to see one constant command only; the script and its
arguments follow by standard input. So no value needs quoting, and none shows in ``ps``.
"""

from __future__ import annotations

from collections.abc import Mapping

#: The command to run on the host: single-quoted, without newline, ``!`` or backslash.
RUN_SCRIPT = "exec /bin/sh -c 'IFS= read -r script; eval \"$script\"'"


def script_input(script: str, arguments: Mapping[str, str], rest: bytes = b"") -> bytes:
    """Make the standard input of ``RUN_SCRIPT``.

    Args:
        script: a POSIX shell script; its lines are joined by blanks, so each must end with
            ``;`` or an operator, and comments are not possible.
        arguments: shell variables that the script finds set.
        rest: what the script's commands find on their standard input. (A shell's ``read``
            takes single bytes from a pipe, so nothing of it is lost.)

    Raises:
        ValueError: an argument holds a line feed or a NUL.
    """
    for name, value in arguments.items():
        if "\n" in value or "\0" in value:
            raise ValueError(f"a line feed or NUL in {name}: {value!r}")
    reads = [f"IFS= read -r {name};" for name in arguments]
    line = " ".join([*reads, *(part.strip() for part in script.strip().splitlines())])
    text = "".join(f"{part}\n" for part in [line, *arguments.values()])
    return text.encode("utf-8", "surrogateescape") + rest


def expand_tilde(variable: str) -> str:
    """A line of script that makes the path in ``variable`` absolute, as seen from home."""
    return (
        f'case ${variable} in "~") {variable}=$HOME;; '
        f'"~/"*) {variable}=$HOME/${{{variable}#"~/"}};; '
        f"/*) ;; "
        f"*) {variable}=$HOME/${variable};; esac;"
    )
