"""Programs that misbehave cost one clear error, and leave nothing behind."""

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials.program import MAX_OUTPUT, Program, read_answer, run
from tests.upstream.credentials.programs import written

SECRET = "s3cret-of-the-test"


async def test_a_program_does_not_get_the_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("MILLPOND_UPSTREAMS", "millpond_upstreams__GHCR__password"):
        monkeypatch.setenv(name, SECRET)
    file = written(tmp_path / "ok", "print(dict(os.environ))")
    output = await run(Program((str(file),), {"MILLPOND_OF_THE_PROGRAM": "kept"}), "")
    assert SECRET.encode() not in output.text
    assert b"MILLPOND_OF_THE_PROGRAM" in output.text


async def test_a_program_gets_text_and_environment(tmp_path: Path) -> None:
    os.environ["OF_MILLPOND"] = "kept"
    body = "print(sent, sys.argv[1], os.environ['EXTRA'], os.environ['OF_MILLPOND'])"
    file = written(tmp_path / "ok", body)
    program = Program((str(file), "$HOME; echo"), {"EXTRA": "more"})
    output = await run(program, "hello")
    assert (output.status, output.text) == (0, b"hello $HOME; echo more kept\n"), "no shell"
    assert "more" not in program.name


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (f"print('{SECRET}'); sys.exit(1)", "ends with status 1"),
        (f"sys.stderr.write('{SECRET}' * 100000); sys.exit(3)", "ends with status 3"),
        ("os.kill(os.getpid(), 9)", "ends with status -9"),
        (f"print('{SECRET}')", "prints no JSON object"),
        (f"print(['{SECRET}'])", "prints no JSON object"),
        ("print('[' * 50000)", "prints no JSON object"),
        ("sys.stdout.buffer.write(b'\\xff' * 100)", "prints no JSON object"),
        ("", "prints no JSON object"),
        (f"print('{SECRET}' * 100000)", f"prints more than {MAX_OUTPUT} bytes"),
        ("for _ in range(10_000): print('x' * 1000)", f"prints more than {MAX_OUTPUT} bytes"),
    ],
)
async def test_a_bad_program_is_one_error_without_its_output(
    tmp_path: Path, body: str, words: str, capfd: pytest.CaptureFixture[str]
) -> None:
    program = Program((str(written(tmp_path / "bad", body)),), {})
    with pytest.raises(CredentialsRejected, match=words) as caught:
        read_answer(program, await run(program, "x"))
    assert str(tmp_path / "bad") in caught.value.message
    assert SECRET not in caught.value.message
    assert SECRET not in capfd.readouterr().err


async def test_a_program_that_reads_nothing(tmp_path: Path) -> None:
    file = tmp_path / "deaf"
    file.write_text("#!/bin/sh\nexec <&-\necho '{\"a\": 1}'\n")
    file.chmod(0o755)
    program = Program((str(file),), {})
    assert read_answer(program, await run(program, "x" * 500_000)) == {"a": 1}


@pytest.mark.parametrize("mode", [None, 0o644])
async def test_a_program_that_is_missing_or_none(tmp_path: Path, mode: int | None) -> None:
    file = tmp_path / "helper"
    if mode is not None:
        file.write_text("text")
        file.chmod(mode)
    with pytest.raises(CredentialsRejected, match="helper cannot be run: "):
        await run(Program((str(file),), {}), "x")


async def test_a_program_that_hangs_ends_with_all_its_children(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = f"child = os.fork()\nif child: open({str(pid)!r}, 'w').write(str(child))\ntime.sleep(60)"
    program = Program((str(written(tmp_path / "slow", body)),), {})
    seconds = 1
    while not (pid.exists() and pid.read_text()):  # on a loaded machine it begins later
        began = time.monotonic()
        with pytest.raises(CredentialsRejected, match=f"does not end within {seconds} seconds"):
            await run(program, "x", seconds=seconds)
        assert time.monotonic() - began < seconds + 40
        seconds *= 2
    child = int(pid.read_text())
    await until(lambda: not is_running(child))


async def test_a_program_that_hangs_after_its_answer_ends(tmp_path: Path) -> None:
    file = written(tmp_path / "mute", "print('{}', flush=True)\nos.close(1)\ntime.sleep(60)")
    with pytest.raises(CredentialsRejected, match="does not end within 1 seconds"):
        await run(Program((str(file),), {}), "x", seconds=1)


async def test_a_program_ends_when_the_wait_for_it_is_cancelled(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    body = f"open({str(pid)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    task = asyncio.create_task(run(Program((str(written(tmp_path / "slow", body)),), {}), "x", 500))
    await until(lambda: pid.exists() and pid.read_text() != "")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not is_running(int(pid.read_text())))


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.01)


def is_running(pid: int) -> bool:
    """Return True if a process is there and not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
