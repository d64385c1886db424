from __future__ import annotations

from pathlib import Path

import pytest

from pexecd.jobs.identity import SIZE, Identity
from tests.unit.jobs.conftest import LEAST, Folder

CELLS = ("16", "2.2", "1")


def digest(folder: Folder, text: str = LEAST, cells: tuple[str, ...] = CELLS) -> bytes:
    return Identity.of(folder.job(text)).digest(cells)


def test_it_is_what_runs_that_counts(folder: Folder) -> None:
    same = digest(folder)
    assert len(same) == SIZE
    assert digest(folder) == same
    # written otherwise, but the same arguments
    assert digest(folder, LEAST.replace("$L $T", '"${L}" $T')) == same
    # a column that the command does not use
    assert digest(folder, cells=("16", "2.2", "99")) == same
    assert digest(folder, LEAST + "nice = 0\n[result]\nx = stderr\n") == same


@pytest.mark.parametrize(
    "more",
    [
        "[env]\nA = 1\n",
        "[env]\nB = 1\n",
        "[input]\nstdin = seed\n",
        "[input]\ndata = seed\n",
        "[input]\ndata = T\n",
        "[input]\ndata = <fields/$L.dat\n",
    ],
)
def test_environment_and_inputs_count(folder: Folder, more: str) -> None:
    folder.write("fields/16.dat", "1")
    folder.write("fields/32.dat", "1")
    seen = {digest(folder, LEAST + other) for other in ("", "[env]\nA = 2\n", more)}
    assert len(seen) == 3


def test_the_order_of_environment_and_inputs_does_not_count(folder: Folder) -> None:
    for heading in ("[env]", "[input]"):
        lines = ["A = seed", "B = T"]
        one, other = ("\n".join([heading, *order, ""]) for order in (lines, lines[::-1]))
        assert digest(folder, LEAST + one) == digest(folder, LEAST + other)


@pytest.mark.parametrize("cells", [("1", "62.2", "1"), ("16 2.2", "", "1"), ("", "16 2.2", "1")])
def test_cells_do_not_run_into_each_other(folder: Folder, cells: tuple[str, str, str]) -> None:
    assert digest(folder, cells=cells) != digest(folder)


def test_with_a_shell_every_parameter_counts(folder: Folder) -> None:
    shell = LEAST + "shell = yes\n"
    assert digest(folder, shell) != digest(folder, shell, ("16", "2.2", "2"))


def test_a_file_counts_by_its_content(folder: Folder) -> None:
    text = LEAST + "[input]\ndata = <fields/$L.dat\n"
    for name in ("16", "32"):
        folder.write(f"fields/{name}.dat", "one")
    first = digest(folder, text)
    folder.write("fields/16.dat", "two")
    assert digest(folder, text) != first
    folder.write("fields/16.dat", "one")
    assert digest(folder, text) == first
    Path(folder.path / "fields" / "16.dat").unlink()
    identity = Identity.of(folder.job(text.replace("$L", "32")))
    identity.digest(CELLS)
    (folder.path / "fields" / "32.dat").unlink()
    identity.digest(CELLS)  # it was read before, once for all tasks


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ("", "802c451c587ec099522c4e5f3c99105a"),
        ("shell = yes\n", "84dc2fbbe2188d69bc0ce1e2e3d35335"),
        ("[env]\nB = 2\nA = a%sb\n", "f559bb22a7cf34e2bf65673c28b76ea6"),
        (
            "[input]\nstdin = seed\nmodel = @model.in\ndata = <fields/$L.dat\n",
            "0422207fdfacb97d7ef528741ab5da62",
        ),
    ],
)
def test_digests_that_are_stored_stay_valid(folder: Folder, more: str, expected: str) -> None:
    folder.write("model.in", b"L=$L \xff ${T}\n")
    folder.write("fields/16.dat", "one")
    folder.write("fields/32.dat", "one")
    identity = Identity.of(folder.job(LEAST + more))
    cells = ("16", "2.2 ü", "")
    assert identity.digest(cells).hex() == expected
    assert identity.reads_files == ("<" in more)
    # as from the session's database, when the job file says something else
    again = Identity(identity.form, folder.path)
    assert again.digest(cells).hex() == expected
