"""Splits the shell examples into commands, each with the output that the document shows."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tests.examples.blocks import Block, every

SHELL: Final = {"sh", "bash", "console"}
DRAWN: Final = re.compile(r"[─│┌└▶]")
LISTED: Final = re.compile(r"[\w./-]+ {2,}\w")
ASSIGNED: Final = re.compile(r"\w+=")
PROMPT: Final = "$ "
NOTE: Final = re.compile(r"\s+# (.+)$")


@dataclass(frozen=True, slots=True)
class Command:
    """One command line, its comment, and the lines that the document shows below it."""

    block: Block
    text: str
    shown: tuple[str, ...] = ()

    @property
    def page(self) -> str:
        return self.block.page

    @property
    def note(self) -> str:
        """The comment at the end of the line."""
        found = NOTE.search(self.text)
        return found[1] if found else ""

    def __str__(self) -> str:
        return f"{self.page}: {self.text.splitlines()[0][:60]}"


def is_shell(block: Block) -> bool:
    """Return True if a block is a script: it says so, or is neither a drawing nor a list of files."""
    plain = not is_drawn(block) and not is_listing(block)
    return block.language in SHELL or (block.language == "" and plain)


def is_listing(block: Block) -> bool:
    """Return True if each line has the name of a file, and what the file is."""
    return all(LISTED.match(line) for line in block.text.splitlines())


def is_drawn(block: Block) -> bool:
    return bool(DRAWN.search(block.text))


def commands(block: Block) -> Iterator[Command]:
    """Yield the commands of a block; in ``console`` only lines with a prompt are commands.

    Variables and the command that uses them are one command.
    """
    found: list[tuple[str, list[str]]] = []
    text, line_text = "", ""
    with_prompts = block.language == "console"
    for line in block.text.splitlines():
        if not line_text and with_prompts and not line.startswith(PROMPT):
            found[-1][1].append(line)
            continue
        line_text += line.removeprefix(PROMPT) if with_prompts else line
        if not is_complete(line_text):
            line_text += "\n"
            continue
        text += line_text
        if ASSIGNED.match(line_text):
            text += "\n"
        else:
            found.append((text, []))
            text = ""
        line_text = ""
    assert not text + line_text, f"{block}: no end of {text + line_text!r}"
    yield from (Command(block, text, tuple(shown)) for text, shown in found)


def is_complete(text: str) -> bool:
    """Return True if no quotation is open, and the line does not go on below."""
    try:
        shlex.split(text, comments=True)
    except ValueError:
        return False
    return not text.endswith(("\\", "|"))


def every_command() -> list[Command]:
    """Return the commands of all pages."""
    return [command for block in every() if is_shell(block) for command in commands(block)]
