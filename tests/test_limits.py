"""A test that hangs fails by its name, wherever it hangs, and the tests after it still run."""

import re
import subprocess
import sys
from pathlib import Path

from tests.parts.millpond import REPOSITORY_ROOT

CONFTEST = """
import uvloop
from tests import limits
from tests.limits import (
    pytest_configure,
    pytest_runtest_teardown,
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
)

def pytest_asyncio_loop_factories(config, item):
    return {"uvloop": uvloop.new_event_loop}
"""
HANGING = """
import asyncio, threading, time
import pytest

async def test_coroutine():
    await asyncio.Event().wait()

async def test_that_survives_errors():
    try:
        await asyncio.Event().wait()
    except Exception:
        pass

async def test_coroutine_never_idle():
    while True:
        await asyncio.sleep(0)

async def test_worker_thread():
    await asyncio.to_thread(time.sleep, 2)

def test_thread():
    thread = threading.Thread(target=time.sleep, args=(2,))
    thread.start()
    thread.join()

@pytest.fixture
async def endless():
    yield
    await asyncio.Event().wait()

async def test_teardown(endless):
    pass

@pytest.mark.timeout(60)
async def test_with_a_limit_of_its_own():
    await asyncio.sleep(1)

@pytest.mark.timeout(60)
async def test_good():
    pass
"""
STUCK = """
import signal

def test_that_no_alarm_reaches():
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
    signal.sigwait({signal.SIGUSR1})
"""


def run(place: Path, tests: str, *, grace: float = 30) -> tuple[int, str]:
    """Run tests with a limit of half a second each; return exit status and output."""
    (place / "conftest.py").write_text(f"{CONFTEST}\nlimits.GRACE = {grace}\n")
    (place / "test_it.py").write_text(tests)
    settings = ("asyncio_mode=auto", "asyncio_default_fixture_loop_scope=function", "timeout=0.5")
    flags = [word for setting in settings for word in ("-o", setting)]
    argv = [sys.executable, "-m", "pytest", "-q", f"--rootdir={place}", "-c/dev/null", *flags]
    env = {"PYTHONPATH": str(REPOSITORY_ROOT)}
    done = subprocess.run(
        [*argv, "test_it.py"],
        check=False,
        cwd=place,
        env=env,
        capture_output=True,
        text=True,
        timeout=100,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_hanging_test_fails_by_name(tmp_path: Path) -> None:
    status, said = run(tmp_path, HANGING)
    assert status == 1, said
    failed = set(re.findall(r"^FAILED test_it.py::(\w+) - .*Overdue", said, re.MULTILINE))
    assert failed == {
        "test_coroutine",
        "test_that_survives_errors",
        "test_coroutine_never_idle",
        "test_worker_thread",
        "test_thread",
    }, said
    assert re.findall(r"^ERROR test_it.py::(\w+)", said, re.MULTILINE) == ["test_teardown"], said
    assert "5 failed, 3 passed, 1 error" in said
    assert "test_it.py::test_coroutine takes longer than its limit of 0.5 s" in said
    assert "test_it.py:6 test_coroutine: await asyncio.Event().wait()" in said


def test_the_watchdog_ends_a_run_that_the_alarm_does_not(tmp_path: Path) -> None:
    status, said = run(tmp_path, STUCK, grace=0.5)
    assert status == 1, said
    assert "in test_that_no_alarm_reaches" in said
