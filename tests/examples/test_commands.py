"""Each command in the documents runs, against a registry, Millpond and Docker, or is an exception."""

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.examples import table, world
from tests.examples.blocks import PAGES, blocks, every
from tests.examples.command_line import faults, split
from tests.examples.scripts import Command, commands, every_command, is_listing, is_shell
from tests.examples.table import UNRUN, Unrun
from tests.examples.world import World
from tests.parts.process import command

pytestmark = pytest.mark.xdist_group("programs")

COMMANDS = every_command()
EXAMPLE = re.compile(r"millpond access test")


def exceptions(example: Command) -> list[Unrun]:
    return [
        one for one in UNRUN if one.page == example.page and example.text.startswith(one.command)
    ]


@pytest.fixture(scope="module")
def here() -> Iterator[World]:
    with world.running() as running:
        yield running


@pytest.mark.parametrize("page", sorted({example.page for example in COMMANDS}))
def test_the_commands_of_a_page_run(here: World, page: str, tmp_path: Path) -> None:
    """In their order, as a reader runs them: later ones use the files of earlier ones."""
    for example in COMMANDS:
        if example.page == page and not exceptions(example):
            done = here.run(example, **_settings(here, example, tmp_path))
            expected = 1 if example.note.startswith("denied") else 0
            assert done.returncode == expected, (str(example), done.stdout, done.stderr)
            _compare(example, done)


def _settings(here: World, example: Command, folder: Path) -> dict[str, str]:
    """Return the settings above the example, if it is one about settings."""
    if not EXAMPLE.match(example.text):
        return {}
    above = [one for one in every() if one.page == example.page and one.line < example.block.line]
    [*_, settings] = [one for one in above if one.language == "yaml"]
    file = folder / "config.yaml"
    file.write_text(here.placed(settings.text) + f"storage: {{path: {folder}}}\n")
    return {"MILLPOND_CONFIG": str(file)}


def _compare(example: Command, done: "subprocess.CompletedProcess[str]") -> None:
    if EXAMPLE.match(example.text):  # its comment says what it prints: "denied, rule 1"
        decision = r"\s+".join(re.findall(r"\w+", example.note.replace("rule", "")))
        assert decision
        assert re.search(decision, done.stdout), (str(example), done.stdout)
    missing = unlike(example.shown, done.stdout + done.stderr)
    assert not missing, (str(example), missing, done.stdout, done.stderr)


def shape(line: str) -> str:
    """Return a line without what differs from run to run: numbers, digests, spaces."""
    return " ".join(re.sub(r"\b[0-9a-f]{12,}\b|\d+(\.\d+)?", "0", line).split())


def unlike(shown: tuple[str, ...], output: str) -> list[str]:
    """Return the shown lines that the output lacks; ``…`` stands for any text."""
    printed = [shape(line) for line in output.splitlines()]
    patterns = {line: re.escape(shape(line)).replace("…", ".*") for line in shown if line.strip()}
    return [
        line
        for line, pattern in patterns.items()
        if not any(re.fullmatch(pattern, one) for one in printed)
    ]


def test_the_listed_files_are_those_of_a_cache(here: World) -> None:
    listings = [one for one in every() if one.language == "" and is_listing(one)]
    [listing] = [one for one in listings if "blobs" in one.text]
    listed = {line.split()[0].split("/")[0] for line in listing.text.splitlines()}
    found = {path.name for path in here.storage.iterdir()}
    assert {"blobs", "admin.sock"} <= found
    assert found <= listed


# --- what does not run -----------------------------------------------------------------------


@pytest.mark.parametrize("exception", UNRUN, ids=lambda one: f"{one.page}: {one.command}")
def test_every_exception_is_needed(exception: Unrun) -> None:
    assert any(exceptions(example) == [exception] for example in COMMANDS)
    named = re.findall(r"tests/[\w./]+", exception.reason)
    assert all((world.ROOT / path).exists() for path in named)


@pytest.mark.parametrize("start", [*table.BEFORE, *table.AFTER, *table.GIVEN])
def test_every_preparation_is_needed(start: str) -> None:
    assert any(example.text.startswith(start) for example in COMMANDS)


@pytest.mark.parametrize("place", table.PLACES)
def test_every_place_is_needed(place: str) -> None:
    assert any(place in block.text for block in every())


@pytest.mark.parametrize("example", [one for one in COMMANDS if exceptions(one)], ids=str)
def test_what_does_not_run_has_options_that_exist(example: Command) -> None:
    words = split(example.text)
    if words[0] == "millpond":
        assert not faults(words[1:])
    if words[0] == "docker" and words[1] != "buildx":
        known = _help("docker", words[1])
        options = [word.split("=")[0] for word in words[2:] if word.startswith("--")]
        assert not [option for option in options if option not in known]


def _help(*words: str) -> str:
    argv = [command(words[0]), *words[1:], "--help"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60, check=True)
    return done.stdout


# --- the tests themselves --------------------------------------------------------------------

PAGE = """\
# One

- a list

    with a paragraph

Text:

    millpond ls   # all
    docker run \\
      --rm x

```console
$ millpond pins
IMAGE  SIZE
a      10 kB
$ true
```

  ```yaml
  a: 1
  ```
"""


def test_the_blocks_of_a_page() -> None:
    found = [(one.line, one.language) for one in blocks("p.md", PAGE)]
    assert found == [(9, ""), (13, "console"), (20, "yaml")]
    assert list(blocks("p.md", PAGE))[2].text == "a: 1\n"


def test_the_commands_of_a_block() -> None:
    found = [one for block in blocks("p.md", PAGE) if is_shell(block) for one in commands(block)]
    assert [one.text for one in found] == [
        "millpond ls   # all",
        "docker run \\\n  --rm x",
        "millpond pins",
        "true",
    ]
    assert found[0].note == "all"
    assert found[2].shown == ("IMAGE  SIZE", "a      10 kB")


def test_output_is_compared_by_its_shape() -> None:
    assert unlike(("IMAGE  SIZE", "a   10 kB"), "IMAGE SIZE\na 7.5 kB\n") == []
    assert unlike(("a … in all",), "a lot in all\n") == []
    assert unlike(("a 10 kB",), "a 10 MB\n") == ["a 10 kB"]


def test_pages_have_examples() -> None:
    assert {"README.md", "docs/operating.md", "CONTRIBUTING.md"} <= {one.page for one in COMMANDS}
    assert len(COMMANDS) > 50
    assert len(PAGES) > 15
