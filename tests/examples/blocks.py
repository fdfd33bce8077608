"""Finds the examples of the documents: fenced blocks, and blocks that are indented by four."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PAGES: Final = (
    "README.md",
    *sorted(path.relative_to(ROOT).as_posix() for path in ROOT.glob("docs/*.md")),
    "deploy/README.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
)

FENCE: Final = re.compile(r"^( *)```(\w*)$")
HEADING: Final = re.compile(r"^#+ (.+)$")
LIST_ITEM: Final = re.compile(r"^\s*([-*+]|\d+\.) ")
INDENT: Final = "    "


@dataclass(frozen=True, slots=True)
class Block:
    """One example: where it is, its language ("" if it names none), and its text."""

    page: str
    line: int
    heading: str
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(page: str, text: str) -> Iterator[Block]:
    """Yield the examples of one page, in their order."""
    lines = text.splitlines()
    heading, position = "", 0
    while position < len(lines):
        start, line = position, lines[position]
        position += 1
        if fence := FENCE.match(line):
            end = _closing(lines, position, fence[1] + "```")
            body = [one.removeprefix(fence[1]) for one in lines[position:end]]
            yield Block(page, start + 1, heading, fence[2], "\n".join(body) + "\n")
            position = end + 1
        elif found := HEADING.match(line):
            heading = found[1]
        elif line.startswith(INDENT) and _is_code(lines, start):
            while position < len(lines) and (not lines[position] or lines[position][:4] == INDENT):
                position += 1
            body = [one.removeprefix(INDENT) for one in lines[start:position]]
            yield Block(page, start + 1, heading, "", "\n".join(body).rstrip() + "\n")


def _closing(lines: list[str], start: int, fence: str) -> int:
    for position in range(start, len(lines)):
        if lines[position] == fence:
            return position
    raise AssertionError(f"line {start}: the block has no end")


def _is_code(lines: list[str], start: int) -> bool:
    """Return True if an indented line begins a block; in a list item it is text."""
    above = [line for line in lines[:start] if line]
    blank = start == 0 or not lines[start - 1]
    return blank and not (above and (LIST_ITEM.match(above[-1]) or above[-1][0] == " "))


def every() -> list[Block]:
    """Return the examples of all pages."""
    return [block for page in PAGES for block in blocks(page, (ROOT / page).read_text())]
