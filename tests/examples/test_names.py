"""Commands and options: all are documented, and all names in the pages exist."""

import re

import pytest

from docs.commands import every
from tests.examples.blocks import PAGES, ROOT, blocks
from tests.examples.command_line import SPAN, all_flags, faults, named, split
from tests.examples.scripts import every_command

GENERATED = "docs/commands.md"
COMMANDS = dict(every())

OTHERS = {
    "--check": "benchmarks.fleet_model",
    "--env": "docker run",
    "--plain-http": "helm pull",
    "--registry-map": "kaniko",
    "--ulimit": "docker run",
    "--volume": "docker run",
}
"""Options of other programs that the text of a page names."""
GLOBAL = {"--help", "--install-completion", "--version"}


def prose(page: str) -> str:
    """The text of a page without its examples."""
    text = (ROOT / page).read_text()
    for block in blocks(page, text):
        for line in block.text.splitlines():
            text = text.replace(line, "", 1)
    return text


def spans() -> list[tuple[str, str]]:
    return sorted({(page, span) for page in PAGES for span in SPAN.findall(prose(page))})


NAMED = [
    (page, span) for page, span in spans() if span.startswith("millpond ") and "COMMAND" not in span
]
OPTIONS = [(page, span) for page, span in spans() if re.match(r"--[a-z]", span)]


def used(text: str) -> str:
    """Return the name of the command of Millpond that a text begins with, "" if there is none."""
    words = split(text.partition("|")[0]) if text.startswith("millpond") else []
    return named(words[1:])[0]


def parts(text: str) -> list[str]:
    """Return the commands of a pipe."""
    return [part.strip() for part in re.split(r"[|;&\n]+", text) if "millpond" in part]


USED = {
    used(part)
    for text in [
        *(one.text for one in every_command()),
        *(span for page, span in NAMED if page != GENERATED),
    ]
    for part in parts(text)
}


@pytest.mark.parametrize(("page", "span"), NAMED)
def test_commands_in_the_text_exist(page: str, span: str) -> None:
    assert not faults(split(span)[1:])


@pytest.mark.parametrize(("page", "span"), OPTIONS)
def test_options_in_the_text_exist(page: str, span: str) -> None:
    assert split(span)[0].split("=")[0] in all_flags() | OTHERS.keys() | GLOBAL


def test_every_foreign_option_is_in_the_text() -> None:
    assert OTHERS.keys() <= {split(span)[0].split("=")[0] for _, span in OPTIONS}


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_explained(name: str) -> None:
    """In an example or in the text of a page that is written by hand, and has its help."""
    assert name in USED
    assert COMMANDS[name].help


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_is_documented(name: str) -> None:
    section = (ROOT / GENERATED).read_text().partition(f"\n### {name}\n")[2].partition("\n#")[0]
    options = [one for one in COMMANDS[name].params if one.opts[0].startswith("-")]
    assert not [one.opts[0] for one in options if f"`{one.opts[0]}`" not in section]
    assert all(one.help for one in options)


def test_faults_are_found() -> None:
    assert faults(["ls", "--jsn"]) == ["--jsn"]
    assert faults(["user", "ad"]) == ["ad"]
    assert faults(["lss"]) == ["lss"]
    assert faults(["pull", "-f", "x", "--platform", "linux/amd64", "nginx"]) == []
