"""The list of traps in ``README.md`` and the tests agree."""

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

HERE = Path(__file__).parent
NUMBERS = [f"T{n:02}" for n in range(1, 72)] + [f"C{n:02}" for n in range(1, 26)]
ROW = re.compile(r"\| ([TC]\d\d) \| ([^|]+) \| ([^|]*) \|")
LISTED = re.compile(r"`(tests/[^`]+)`")
CARRIED = re.compile(r"test((?:_[tc]\d\d)+)_")


class Row(NamedTuple):
    number: str
    trouble: str
    tests: list[str]
    remark: str


def rows() -> list[Row]:
    found = []
    for line in (HERE / "README.md").read_text().splitlines():
        if match := ROW.fullmatch(line):
            number, trouble, answer = match.groups()
            remark = LISTED.sub("", answer).strip(" .,;")
            found.append(Row(number, trouble.strip(), LISTED.findall(answer), remark))
    return found


def names(body: list[ast.stmt], prefix: str) -> Iterator[str]:
    """The tests among these statements, as pytest names them."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            if node.name.startswith("test"):
                yield f"{prefix}::{node.name}"
        elif isinstance(node, ast.ClassDef):
            yield from names(node.body, f"{prefix}::{node.name}")


def every_test() -> list[str]:
    """Every test in this tree, without running any of it."""
    found: list[str] = []
    for file in sorted(HERE.rglob("test_*.py")):
        tree = ast.parse(file.read_text(), file.name)
        found += names(tree.body, file.relative_to(HERE.parent).as_posix())
    return found


def carried(test: str) -> set[str]:
    """The numbers in the name of a test."""
    match = CARRIED.match(test.rpartition("::")[2])
    return set() if match is None else set(match[1].upper().strip("_").split("_"))


ROWS = rows()
TESTS = every_test()


def test_every_number_has_one_row() -> None:
    assert Counter(row.number for row in ROWS) == Counter(NUMBERS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_what_is_listed_is_there_and_carries_the_number(row: Row) -> None:
    assert not set(row.tests) - set(TESTS), "no such test"
    assert all(row.number in carried(test) for test in row.tests)
    assert len(row.tests) == len(set(row.tests))
    assert row.trouble


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.number)
def test_what_has_no_test_has_a_reason(row: Row) -> None:
    assert row.tests or len(row.remark.split()) >= 5


def test_what_carries_a_number_is_listed_under_it() -> None:
    listed = {(row.number, test) for row in ROWS for test in row.tests}
    assert {(number, test) for test in TESTS for number in carried(test)} <= listed
