from __future__ import annotations

from pexecd.jobs import Renderer, read_table
from pexecd.jobs.values import FileContent
from tests.unit.jobs.conftest import Folder

NASTY = ["; touch hacked; $(id)", 'it\'s "so" \\n $L ${T}', "grün  und blau", "*", "-rf", ""]


def test_a_line_is_put_into_the_command(folder: Folder) -> None:
    job = folder.job("[job]\nparameters = sweep.txt\n[worker]\ncommand = ising -L $L -T ${T}x\n")
    renderer = Renderer(job)

    rendered = [renderer.render(cells) for cells in read_table(job)]

    assert [one.arguments for one in rendered] == [
        ("ising", "-L", "16", "-T", "2.2x"),
        ("ising", "-L", "32", "-T", "2.3x"),
    ]
    assert rendered[0].environment == {}
    assert rendered[0].inputs == ()
    assert renderer.parameters(("1", "2", "3")) == {"L": "1", "T": "2", "seed": "3"}


def test_a_nasty_value_arrives_as_one_argument(folder: Folder) -> None:
    folder.write("sweep.txt", "x\n" + "\n".join(NASTY[:-1]))
    job = folder.job('[job]\nparameters = sweep.txt\n[worker]\ncommand = echo $x "a $x"\n')
    renderer = Renderer(job)

    assert [cells for (cells,) in read_table(job)] == NASTY[:-1]
    for value in NASTY:
        assert renderer.render((value,)).arguments == ("echo", value, f"a {value}")


def test_with_a_shell_parameters_are_variables(folder: Folder) -> None:
    job = folder.job(
        '[job]\nparameters = sweep.txt\n[worker]\nshell = yes\ncommand = echo "$L" $nope | wc\n'
    )

    rendered = Renderer(job).render(("; id", "2", "3"))

    assert rendered.arguments == ("/bin/sh", "-c", 'echo "$L" $nope | wc')
    assert rendered.environment == {"L": "; id", "T": "2", "seed": "3"}


def test_inputs_are_values_templates_and_files(folder: Folder) -> None:
    folder.write("model.in", b"\xef\xbb\xbfL = $L;\r\n\\$ \xe4 ${T}\\n\n")
    folder.write("fields/16.dat", "")
    folder.write("fields/32.dat", "")
    job = folder.job(
        "[job]\nparameters = sweep.txt\n[worker]\ncommand = run\n"
        "[input]\nstdin = seed\nin/model.cfg = @model.in\nfield.dat = < fields/$L.dat\n"
    )

    rendered = Renderer(job).render(("16", "grün", " 1"))

    assert rendered.inputs == (
        ("stdin", b" 1"),
        ("in/model.cfg", b"\xef\xbb\xbfL = 16;\r\n$ \xe4 gr\xc3\xbcn\\n\n"),
        ("field.dat", FileContent(folder.path / "fields/16.dat")),
    )
