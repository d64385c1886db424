from __future__ import annotations

from pathlib import Path

import pytest

from pexecd.errors import Mistake
from pexecd.jobs.cluster import HERE, read_cluster
from pexecd.jobs.values import HostSpec


def read(tmp_path: Path, text: str | bytes) -> tuple[tuple[HostSpec, ...], list[str]]:
    path = tmp_path / "lab.hosts"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    mistakes: list[Mistake] = []
    hosts = read_cluster(path, "lab.hosts", mistakes)
    return hosts, [str(one) for one in mistakes]


@pytest.mark.parametrize(
    ("line", "host"),
    [
        ("lab1", HostSpec("lab1", "lab1")),
        ("8/lab1", HostSpec("lab1", "lab1", slots=8)),
        ("a@lab1", HostSpec("a@lab1", "lab1", "a")),
        ("a@b.org@lab1:2222", HostSpec("a@b.org@lab1:2222", "lab1", "a@b.org", 2222)),
        ("2/a@10.0.0.1:22", HostSpec("a@10.0.0.1:22", "10.0.0.1", "a", 22, 2)),
        ("[fe80::1]:2222", HostSpec("[fe80::1]:2222", "fe80::1", port=2222)),
        ("a@[::1]", HostSpec("a@[::1]", "::1", "a")),
        (":", HERE),
        ("4/:", HERE._replace(slots=4)),
        ("lab1 slots=3", HostSpec("lab1", "lab1", slots=3)),
        ("lab1 platform=linux-amd64", HostSpec("lab1", "lab1", platform="linux-x86_64")),
        (
            "lab1 python=/opt/py/bin/python3 dir=/scratch/me shared=nfs start=no",
            HostSpec(
                "lab1",
                "lab1",
                python="/opt/py/bin/python3",
                dir="/scratch/me",
                shared="nfs",
                start=False,
            ),
        ),
        ("lab1 start=yes dir=~/x # the fast one", HostSpec("lab1", "lab1", dir="~/x")),
        ("lab1 shared=a#b", HostSpec("lab1", "lab1", shared="a#b")),
    ],
)
def test_a_line_is_a_host(tmp_path: Path, line: str, host: HostSpec) -> None:
    hosts, mistakes = read(tmp_path, line + "\n")

    assert mistakes == []
    assert hosts == (host._replace(line=1),)


def test_comments_blanks_and_line_ends_are_as_people_write_them(tmp_path: Path) -> None:
    hosts, mistakes = read(tmp_path, b"\xef\xbb\xbf# lab\r\n\r\n  lab1\r\n  # off: lab3\r\n2/lab2")

    assert mistakes == []
    assert [(host.name, host.slots, host.line) for host in hosts] == [
        ("lab1", None, 3),
        ("lab2", 2, 5),
    ]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-oProxyCommand=x", "'-oProxyCommand=x' is no name or address of a host"),
        ("-l@lab1", "'-l' is no user name"),
        ("@lab1", "groups (@group) are not supported"),
        ("@big/8/lab1", "groups (@group) are not supported"),
        ("a:secret@lab1", "passwords (user:password@host) are not supported, use a key"),
        ("ssh -p 2222 lab1", "an ssh command in place of a host is not supported"),
        ("4/ssh lab1", "an ssh command in place of a host is not supported"),
        ("//usr/bin/myssh", "an ssh command in place of a host is not supported"),
        ("0/lab1", "'0' slots: a whole number, 1 to 999999 expected"),
        ("lab1 slots=many", "'many' slots: a whole number, 1 to 999999 expected"),
        ("4/lab1 slots=4", "slots is given twice"),
        ("lab1:0", "'0' is no port, 1 to 65535 expected"),
        ("lab1:", "'' is no port"),
        ("lab1:99999", "'99999' is no port"),
        ("fe80::1", "an IPv6 address is written [fe80::1] or [fe80::1]:port"),
        ("[fe80::1", "an IPv6 address is written"),
        ("[lab1]:22", "an IPv6 address is written"),
        ("[::1]22", "an IPv6 address is written"),
        ("lab1,lab2", "'lab1,lab2' is no name or address of a host, one a line expected"),
        ("lab[1-4]", "lists like node[1-4] or node1,node2 are not supported"),
        ("lab1 slots = 4", "no blanks around '=' expected"),
        ("lab$(id)", "is no name or address of a host"),
        ("@", "groups"),
        ("8/", "'' is no name or address of a host"),
        ("lab1 plattform=linux-x86_64", "unknown key 'plattform' (did you mean 'platform'?)"),
        ("lab1 platform=Linux", "platform=Linux: a word like linux-x86_64 expected"),
        ("lab1 platform=any", "platform=any: a word like linux-x86_64 expected"),
        ("lab1 dir=here", "dir=here: a folder that begins with / or ~/ expected"),
        ("lab1 start=maybe", "start=maybe: yes or no expected"),
        ("lab1 python=", "python is empty"),
        ("lab1 shared=a shared=b", "shared is given twice"),
    ],
)
def test_a_line_that_is_no_host_is_a_mistake(tmp_path: Path, line: str, said: str) -> None:
    hosts, mistakes = read(tmp_path, f"good\n{line}\n")

    assert hosts[0].name == "good"
    assert len(mistakes) == 1
    assert mistakes[0].startswith("lab.hosts:2: ")
    assert said in mistakes[0]


def test_all_mistakes_of_a_line_are_named(tmp_path: Path) -> None:
    _, mistakes = read(tmp_path, "lab1 slots=x start=y color=red\n")

    assert len(mistakes) == 3


def test_the_same_host_twice_is_a_mistake(tmp_path: Path) -> None:
    hosts, mistakes = read(tmp_path, "lab1\n:\nb@lab1\nlab1:2222\n3/LAB1\n2/:\n")

    assert mistakes == [
        "lab.hosts:5: host LAB1 is there twice, it was named in line 1",
        "lab.hosts:6: host : is there twice, it was named in line 2",
    ]
    assert [host.name for host in hosts] == ["lab1", ":", "b@lab1", "lab1:2222"]


def test_a_file_without_a_host_is_a_mistake(tmp_path: Path) -> None:
    assert read(tmp_path, "# none\n") == (
        (),
        ["lab.hosts: names no host, one a line expected"],
    )


def test_bytes_that_are_no_text_are_named_by_line(tmp_path: Path) -> None:
    hosts, mistakes = read(tmp_path, b"lab1\nl\xe4b\n")

    assert [host.name for host in hosts] == ["lab1"]
    assert mistakes == ["lab.hosts:2: byte 2 (0xe4) is not UTF-8, UTF-8 expected"]
