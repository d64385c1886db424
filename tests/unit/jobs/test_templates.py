from __future__ import annotations

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pexecd.jobs.templates import CommandPattern, Pattern, PatternError

VALUES = {"L": "16", "T": "2.2", "x": "a b", "empty": ""}
#: Anything that can be an argument.
TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("plain", "plain"),
        ("$L", "16"),
        ("${L}", "16"),
        ("-${L}x$T-", "-16x2.2-"),
        ("$L$T", "162.2"),
        ("$x[0]", "a b[0]"),
        ("$x->y $x::z $x{0}", "a b->y a b::z a b{0}"),
        (r"\$L", "$L"),
        (r"\\$L", "\\16"),
        (r"\\\$L", r"\$L"),
        (r"\"$L\"", '"16"'),
        (r"\n \t \L \` 100% @L {}", r"\n \t \L \` 100% @L {}"),
        ("ends with \\", "ends with \\"),
        ("$empty", ""),
        ("'$L'", "'16'"),
        ("$L\n${T}\n", "16\n2.2\n"),
    ],
)
def test_a_text_is_filled_in_as_perl_does(text: str, filled: str) -> None:
    pattern = Pattern.parse(text, VALUES)

    assert pattern.fill(VALUES) == filled
    assert pattern.of_cells(list(VALUES))(list(VALUES.values())) == filled


def test_a_value_is_not_looked_into() -> None:
    nasty = {"x": r"$L ${T} \$ \\ %s {x} \1"}

    assert Pattern.parse("<$x>").fill(nasty) == f"<{nasty['x']}>"


def test_names_are_told_once_each_in_order() -> None:
    assert Pattern.parse("$b ${a} $b").names == ("b", "a")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("$ x", "'$' begins no variable"),
        ("x$", "'$' begins no variable"),
        ("$1", "'$1' begins no variable"),
        ("$(id)", "'$(' begins no variable"),
        ("$$", "'$$' begins no variable"),
        ("${L", "'${' begins no variable"),
        ("${}", "'${' begins no variable"),
        ("${L }", "'${' begins no variable"),
        ("$ä", "'$ä' begins no variable"),
        ("$nope", "unknown variable '$nope', a column"),
        ("${l}", "unknown variable '${l}' (did you mean 'L'?)"),
        ("$emty", "unknown variable '$emty' (did you mean 'empty'?)"),
    ],
)
def test_what_begins_no_variable_is_a_mistake(text: str, problem: str) -> None:
    for parse in (Pattern.parse, CommandPattern.parse):
        with pytest.raises(PatternError) as caught:
            parse(text, VALUES)
        assert caught.value.problems[0].text.startswith(problem)


def test_all_problems_are_found_with_their_places() -> None:
    text = 'a $one "b $two" $3'
    with pytest.raises(PatternError) as caught:
        CommandPattern.parse(text, VALUES)

    assert [text[problem.offset :][:2] for problem in caught.value.problems] == ["$o", "$t", "$3"]


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("ising -L $L  -T\t${T}", ["ising", "-L", "16", "-T", "2.2"]),
        ("a $x b", ["a", "a b", "b"]),
        ("a '$x ${T}' b", ["a", "$x ${T}", "b"]),
        ('a "$x $T" b', ["a", "a b 2.2", "b"]),
        (r'a "\$x \\ \" \` \n" b', ["a", r"$x \ " + '" ` ' + r"\n", "b"]),
        (r"a \$x b\ c \\ \' \n", ["a", "$x", "b c", "\\", "'", "n"]),
        ("a'$L'\"$L\"$L\\$L", ["a$L1616$L"]),
        ("a $empty '' \"\" b", ["a", "", "", "", "b"]),
        ("x=$x[0] | > & ; # `id` * ~", ["x=a b[0]", "|", ">", "&", ";", "#", "`id`", "*", "~"]),
        ("echo grüße\u00a0x", ["echo", "grüße\u00a0x"]),
    ],
)
def test_a_command_is_split_first_and_filled_in_afterwards(command: str, words: list[str]) -> None:
    pattern = CommandPattern.parse(command, VALUES)

    assert pattern.words(VALUES) == words
    assert pattern.line_of_cells(list(VALUES))(list(VALUES.values())) == shlex.join(words)


@pytest.mark.parametrize(
    ("command", "problem"),
    [
        ("a 'b", "a single quote is not closed"),
        ('a "b', "a double quote is not closed"),
        ('a "b\\"', "a double quote is not closed"),
        ("a b\\", "a backslash at the end stands for nothing"),
        ("", "the command is empty"),
        ('x$"L"', "'$' begins no variable"),
        ("x$'L'", "'$' begins no variable"),
        ('"${"L}', "'${' begins no variable"),
    ],
)
def test_a_malformed_command_is_a_mistake(command: str, problem: str) -> None:
    with pytest.raises(PatternError, match=problem.replace("$", r"\$").replace("{", r"\{")):
        CommandPattern.parse(command, VALUES)


def test_a_shell_gets_the_command_as_it_is_written() -> None:
    command = CommandPattern.for_shell('echo "$L" \\$x | sort')

    assert command.words(VALUES) == ["/bin/sh", "-c", 'echo "$L" \\$x | sort']


def test_patterns_show_what_was_written() -> None:
    assert repr(Pattern.parse("a $L")) == "Pattern('a $L')"
    assert repr(CommandPattern.parse("a $L")) == "CommandPattern('a $L')"


def test_the_program_is_known_unless_it_has_variables() -> None:
    assert CommandPattern.parse("'is'ing $L").program == "ising"
    assert CommandPattern.parse("is$L $L").program is None


@given(st.dictionaries(st.sampled_from("abc"), TEXTS, min_size=3))
def test_values_never_change_the_number_of_words(values: dict[str, str]) -> None:
    command = CommandPattern.parse('p% $a "$b" x${c}%sy "$a $b"', values)
    a, b, c = (values[name] for name in "abc")
    words = ["p%", a, b, f"x{c}%sy", f"{a} {b}"]

    assert command.words(values) == words
    assert command.line_of_cells("cab")((c, a, b)) == shlex.join(words)


@given(st.lists(TEXTS, min_size=1))
def test_splitting_undoes_shell_quoting(words: list[str]) -> None:
    command = CommandPattern.parse(shlex.join(words), ())

    assert command.words({}) == words
    assert command.line_of_cells(())(()) == shlex.join(words)


@given(TEXTS)
def test_escaped_text_comes_out_as_it_was(text: str) -> None:
    escaped = text.replace("\\", "\\\\").replace("$", "\\$").replace('"', '\\"')

    assert Pattern.parse(escaped, ()).fill({}) == text


@given(st.text(st.sampled_from("$\\\"'{} aL1[")))
def test_unquoted_words_are_as_the_shell_library_splits_them(text: str) -> None:
    """As ``shlex`` does, wherever there is no variable and no quoting of our own."""
    if "$" in text:
        text = text.replace("$", "")
    try:
        expected = shlex.split(text)
    except ValueError:
        with pytest.raises(PatternError):
            CommandPattern.parse(text)
    else:
        if expected:
            assert CommandPattern.parse(text).words({}) == expected
