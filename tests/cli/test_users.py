from pathlib import Path

import pytest

from proxy.access import htpasswd
from tests.cli.command import Done, beside, on_terminal, refused


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "htpasswd"


async def run(file: Path, *arguments: str, given: str = "") -> Done:
    return await beside("user", *arguments, "--file", str(file), given=given)


def knows(file: Path, user: str, password: str) -> bool:
    return htpasswd.matches(htpasswd.parse(file.read_text(), file), user, password)


async def test_users_come_and_go(file: Path) -> None:
    done = await run(file, "add", "ann", given="secret\n")
    assert (done.returncode, done.stdout) == (0, "ann: added\n")
    assert file.stat().st_mode & 0o777 == 0o600
    assert knows(file, "ann", "secret")
    assert (await run(file, "add", "bob", given="geheim")).returncode == 0
    assert (await run(file, "ls")).stdout == "ann\nbob\n"
    assert (await run(file, "passwd", "ann", given="other\n")).returncode == 0
    assert knows(file, "ann", "other")
    assert knows(file, "bob", "geheim")
    assert (await run(file, "rm", "ann")).stdout == "ann: removed\n"
    assert (await run(file, "ls")).stdout == "bob\n"


async def test_a_password_is_the_line_with_its_spaces(file: Path) -> None:
    assert (await run(file, "add", "ann", given=" secret \r\n")).returncode == 0
    assert knows(file, "ann", " secret ")


@pytest.mark.parametrize(
    ("arguments", "given", "word"),
    [
        (["add", "ann"], "x\n", "already"),
        (["add", "a:b"], "x\n", "user name"),
        (["add", "bob"], "\n", "1 to 72 bytes"),
        (["add", "bob"], "x" * 73, "1 to 72 bytes"),
        (["passwd", "bob"], "x\n", "no user 'bob'"),
        (["rm", "bob"], "", "no user 'bob'"),
    ],
)
async def test_what_cannot_be_done_changes_nothing(
    file: Path, arguments: list[str], given: str, word: str
) -> None:
    text = f"ann:{htpasswd.hash_password('secret')}\n"
    file.write_text(text)
    refused(await run(file, *arguments, given=given), word)
    assert file.read_text() == text


async def test_a_file_of_others_is_not_rewritten(file: Path) -> None:
    file.write_text("ann:$apr1$x$y\n")
    refused(await run(file, "add", "bob", given="x\n"), "line 1", "MD5")
    refused(await run(file, "ls"), "line 1")


async def test_the_file_is_that_of_the_settings(file: Path, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text(f"access: {{htpasswd_file: {file}}}\n")
    done = await beside("user", "add", "ann", "-c", str(config), given="secret\n")
    assert done.returncode == 0, done
    assert knows(file, "ann", "secret")
    config.write_text("{}\n")
    refused(await beside("user", "ls", "-c", str(config)), "access.htpasswd_file is not set")


async def test_a_password_is_typed_twice_and_not_shown(file: Path) -> None:
    async with on_terminal("user", "add", "ann", "--file", str(file)) as terminal:
        await terminal.shows("Password of ann:")
        terminal.type("secret\n")
        await terminal.shows("confirmation:")
        terminal.type("secret\n")
    assert "secret" not in terminal.written
    assert knows(file, "ann", "secret")
