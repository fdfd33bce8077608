import json
import time
from pathlib import Path

import pytest

from proxy.access import api_tokens
from tests.access.people import write_token
from tests.cli.command import Done, refused, run


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "tokens.yaml"


def command(file: Path, *arguments: str) -> Done:
    return run("token", *arguments, "--file", str(file))


def test_a_token_is_shown_once_and_can_be_revoked(file: Path) -> None:
    made = command(file, "new", "ci", "--group", "dev", "--group", "ops", "--expires", "90d")
    token = made.stdout.strip()
    assert (made.returncode, made.stderr) == (0, "")
    assert file.stat().st_mode & 0o777 == 0o600
    assert token not in file.read_text()
    found = api_tokens.parse(file.read_text(), file).find(token)
    assert found is not None
    assert (found.name, found.groups) == ("ci", ("dev", "ops"))
    assert abs((found.expires or 0) - time.time() - 90 * 86400) < 600

    assert command(file, "new", "other").returncode == 0
    listed = json.loads(command(file, "ls", "--json").stdout)["tokens"]
    assert [(one["name"], one["expires"] is None) for one in listed] == [
        ("ci", False),
        ("other", True),
    ]
    assert "dev, ops" in command(file, "ls").stdout
    assert token not in command(file, "ls").stdout

    assert command(file, "revoke", "ci").stdout == "ci: revoked\n"
    assert api_tokens.parse(file.read_text(), file).find(token) is None
    assert command(file, "revoke", "other").returncode == 0
    assert command(file, "ls").stdout == ""


def test_an_expired_token_is_listed_as_such(file: Path) -> None:
    write_token(file, "old", seconds=-60)
    assert "(expired)" in command(file, "ls").stdout
    write_token(file, "new", seconds=3600)
    assert "(expired)" not in command(file, "ls").stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["new", "ci"], "already"),
        (["new", "a b"], "name"),
        (["new", "x", "--expires", "soon"], "--expires"),
        (["revoke", "x"], "no token 'x'"),
    ],
)
def test_what_cannot_be_done_changes_nothing(file: Path, arguments: list[str], word: str) -> None:
    assert command(file, "new", "ci").returncode == 0
    text = file.read_text()
    refused(command(file, *arguments), word)
    assert file.read_text() == text
