"""Scripts by standard input."""

from __future__ import annotations

import subprocess

import pytest

from pexecd.shell import RUN_SCRIPT, expand_tilde, script_input

ODD = "a 'b' \"c\" $HOME !x `id` \\ é # ; *\t-n"


def run(script: str, arguments: dict[str, str], rest: bytes = b"", home: str = "/h o") -> bytes:
    return subprocess.run(
        ["/bin/sh", "-c", RUN_SCRIPT],
        input=script_input(script, arguments, rest),
        env={"HOME": home, "PATH": "/usr/bin:/bin"},
        capture_output=True,
        check=True,
    ).stdout


def test_no_login_shell_can_misread_the_command() -> None:
    quoted = RUN_SCRIPT.removeprefix("exec /bin/sh -c '").removesuffix("'")
    assert not set(quoted) & set("'!\\\n")


def test_arguments_and_rest() -> None:
    out = run('printf "%s|" "$one" "$two"; cat;', {"one": ODD, "two": ""}, b"re\nst")
    assert out == f"{ODD}||re\nst".encode()


def test_lines_are_joined() -> None:
    assert run("if true; then\n  echo yes;\nfi;\n", {}) == b"yes\n"


@pytest.mark.parametrize("value", ["two\nlines", "nul\0"])
def test_what_cannot_be_told(value: str) -> None:
    with pytest.raises(ValueError, match="folder"):
        script_input("true", {"folder": value})


@pytest.mark.parametrize(
    ("path", "absolute"),
    [
        ("~", "/h o"),
        ("~/a b", "/h o/a b"),
        ("/abs", "/abs"),
        ("relative/~", "/h o/relative/~"),
    ],
)
def test_tilde(path: str, absolute: str) -> None:
    script = f'{expand_tilde("folder")} printf %s "$folder";'
    assert run(script, {"folder": path}).decode() == absolute
