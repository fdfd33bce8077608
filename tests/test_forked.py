"""A forked start is like a full one: its output, its end, and what it inherits."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryFile

import pytest

from tests.parts.forked import PROGRAM, ROOT, Forked, can_fork
from tests.parts.process import hermetic, wait_until


def outcome(argv: list[str], env: dict[str, str], cwd: Path, given: str) -> tuple[int, str, str]:
    with TemporaryFile("w+") as into, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        into.write(given)
        into.seek(0)
        process = Forked(argv, env, cwd, (into.fileno(), out.fileno(), err.fileno()))
        status = process.wait(60)
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


@pytest.mark.parametrize(
    ("words", "given", "status"),
    [
        ("--help", "", 0),
        ("--version", "", 0),
        ("ls --storage none", "", 2),
        ("nonsense", "", 2),
        ("", "", 2),
        ("check", "", 2),
        ("user add ann --file users", "secret\n", 0),
    ],
)
def test_the_outcome_is_that_of_a_full_start(
    tmp_path: Path, words: str, given: str, status: int
) -> None:
    argv = [*PROGRAM, *words.split()]
    env = hermetic(tmp_path, PYTHONPATH=str(ROOT), MILLPOND_LISTEN="nowhere", COLUMNS="70")
    (tmp_path / "full").mkdir()
    (tmp_path / "forked").mkdir()
    full = subprocess.run(
        argv,
        env=env,
        cwd=tmp_path / "full",
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert full.returncode == status, full
    forked = outcome(argv, env, tmp_path / "forked", given)
    assert forked == (full.returncode, full.stdout, full.stderr)
    left = [[path.name for path in (tmp_path / name).iterdir()] for name in ("full", "forked")]
    assert left[0] == left[1], "the directory is its own"


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_as_they_end_a_full_start(tmp_path: Path, number: signal.Signals) -> None:
    argv = [*PROGRAM, "serve", "--listen", "127.0.0.1:0", "--storage", str(tmp_path / "cache")]
    with TemporaryFile("w+") as out:
        process = Forked(argv, os.environ, ROOT, (0, out.fileno(), out.fileno()))
        written = Path(f"/proc/self/fd/{out.fileno()}")
        wait_until(lambda: "listening" in written.read_text(), "its start")
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(60) == (-signal.SIGKILL if number == signal.SIGKILL else 0)
    assert not Path(f"/proc/{process.pid}").exists()


def test_a_wait_has_an_end(tmp_path: Path) -> None:
    argv = [*PROGRAM, "serve", "--listen", "127.0.0.1:0", "--storage", str(tmp_path / "cache")]
    with TemporaryFile("w+") as out:
        process = Forked(argv, os.environ, ROOT, (0, out.fileno(), out.fileno()))
        try:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.1)
        finally:
            process.kill()
            process.wait(60)


def test_a_terminal_of_its_own() -> None:
    ours, theirs = pty.openpty()
    argv = [*PROGRAM, "--version"]
    process = Forked(argv, os.environ, ROOT, (theirs, theirs, theirs), start_new_session=True)
    os.close(theirs)
    assert process.wait(60) == 0
    assert os.read(ours, 100).startswith(b"millpond ")
    os.close(ours)


@pytest.mark.parametrize(
    ("argv", "changes", "expected"),
    [
        (PROGRAM, {}, True),
        (PROGRAM, {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}, True),
        (PROGRAM, {"PYTHONPATH": "/elsewhere"}, False),
        (PROGRAM, {"PYTHONDEVMODE": "1"}, False),
        (PROGRAM, {"FORCE_COLOR": "1"}, False),
        (("prlimit", *PROGRAM), {}, False),
        ((sys.executable, "-m", "tests.attack.probe"), {}, False),
    ],
)
def test_what_is_started_in_full(
    argv: tuple[str, ...], changes: dict[str, str], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MILLPOND_TEST_STARTS", raising=False)
    assert can_fork(argv, {"PATH": "/bin", **changes}) is expected
    monkeypatch.setenv("MILLPOND_TEST_STARTS", "full")
    assert not can_fork(argv, {"PATH": "/bin", **changes})


def test_programs_end_with_the_tests_that_started_them(tmp_path: Path) -> None:
    script = (
        "import os, sys, time\n"
        "from tests.parts.forked import PROGRAM, Forked\n"
        "argv = [*PROGRAM, 'serve', '--listen', '127.0.0.1:0', '--storage', sys.argv[1]]\n"
        "null = os.open(os.devnull, os.O_RDWR)\n"
        "print(Forked(argv, os.environ, None, (null, null, null)).pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    words = [sys.executable, "-c", script, str(tmp_path / "cache")]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    started = Path(f"/proc/{json.loads(done.stdout)}")
    wait_until(lambda: not started.exists(), "the end of what it started")
