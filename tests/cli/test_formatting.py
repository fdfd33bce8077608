import time
from collections.abc import AsyncIterator

import pytest

from proxy.cli.formatting import ROWS, Table, age, count, print_rows, printable, table


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.5, "0s"),
        (-90, "0s"),
        (59.5, "59s"),
        (60.5, "1m"),
        (61, "1m"),
        (3599, "59m"),
        (3700, "1h"),
        (86399, "23h"),
        (90000, "1d"),
    ],
)
def test_an_age_is_its_largest_unit(seconds: float, told: str) -> None:
    assert age(time.time() - seconds) == told


def test_what_is_not_known_has_no_age() -> None:
    assert age(None) == "-"


def test_counts() -> None:
    assert [count(n, "blob") for n in (0, 1, 12345)] == ["0 blobs", "1 blob", "12,345 blobs"]


def test_control_characters_are_replaced() -> None:
    assert printable("a\tb\x1b[2J\r\u202e é") == "a\ufffdb\ufffd[2J\ufffd\ufffd é"


def test_a_table_is_as_wide_as_it_gets() -> None:
    assert list(table(("A", "B"), [("long name", "1"), ("x", "")])) == [
        "A          B",
        "long name  1",
        "x",
    ]


def test_a_name_that_leaves_no_room_has_a_line_to_itself() -> None:
    assert list(table(("A", "B"), [("long name", "1"), ("x", "2")], width=9)) == [
        "A  B",
        "long name",
        "   1",
        "x  2",
    ]


def test_a_table_whose_names_have_just_the_room_of_their_heading() -> None:
    assert list(table(("NAME", "B"), [("x", "1")], width=7)) == ["NAME  B", "x     1"]


def test_a_terminal_too_narrow_for_anything() -> None:
    assert list(table(("A", "B", "C"), [("long", "much", ""), ("x", "1", "2")], width=4)) == [
        "long",
        "  much",
        "x",
        "  1, 2",
    ]


def test_columns_grow_with_the_rows_that_arrive() -> None:
    drawing = Table(("A", "B"), 40)
    assert list(drawing.lines([("long name", "1")])) == ["A          B", "long name  1"]
    assert list(drawing.lines([("x", "22"), ("longer name", "3")])) == [
        "x            22",
        "longer name  3",
    ]
    assert list(drawing.lines([("y", "4")])) == ["y            4"]


def test_wide_characters_take_two_columns() -> None:
    assert list(table(("A", "B"), [("日本", "1"), ("x", "2")])) == ["A     B", "日本  1", "x     2"]


async def test_a_long_table_is_printed_while_its_rows_arrive(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printed: list[str] = []

    async def rows() -> AsyncIterator[tuple[str, str]]:
        for number in range(2 * ROWS + 1):
            if number % ROWS == 0:
                printed.append(capsys.readouterr().out)
            yield f"image{number}", "whole"

    await print_rows(("NAME", "STATE"), rows())
    printed.append(capsys.readouterr().out)
    assert [text.count("\n") for text in printed] == [0, ROWS + 1, ROWS, 1]
    assert "".join(printed).split()[:4] == ["NAME", "STATE", "image0", "whole"]


async def test_a_table_without_rows_is_not_printed(capsys: pytest.CaptureFixture[str]) -> None:
    async def rows() -> AsyncIterator[tuple[str, str]]:
        return
        yield

    await print_rows(("NAME", "STATE"), rows())
    assert not capsys.readouterr().out
