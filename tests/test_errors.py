"""The text of an error is one line a problem, whatever a damaged file put into it."""

import pytest

from convert.errors import MOST_CHARACTERS, ConversionError


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("plain  text: é", "plain  text: é"),
        ("two\nlines\r\n and\ta tab", "two lines and a tab"),
        ("\x1b[2J", "\\x1b[2J"),
        ("a\0b", "a\\x00b"),
        ("\ud800", "\\ud800"),
        ("\u2028x", " x"),
    ],
)
def test_a_problem_is_a_line(text, line):
    error = ConversionError(text, "another")
    assert error.problems == (line, "another")
    assert str(error) == f"{line}\nanother"


def test_a_problem_is_no_megabyte():
    (problem,) = ConversionError(f"first{'x' * 10**6}last").problems
    assert MOST_CHARACTERS <= len(problem) < MOST_CHARACTERS + 10
    assert problem.startswith("first")
    assert problem.endswith("last")
