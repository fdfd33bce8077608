"""The time limit of each test: a test that takes longer fails by name, and the run continues.

`pytest-timeout` reads the limits (`timeout` in `pyproject.toml`, `@pytest.mark.timeout(seconds)`)
and calls the hooks here, because neither of its own methods works for these tests: uvloop logs and
drops the exception that its signal handler raises, so the test hangs on; its thread ends the whole
run, and does not name a test that waits in a coroutine.
"""

import asyncio
import faulthandler
import io
import linecache
import os
import signal
import sys
import threading
import traceback
from collections.abc import Generator
from types import FrameType
from typing import Final, Protocol

import pytest

GRACE: Final = 60.0
"""Seconds after the limit until the watchdog ends the run, and limit of a failed test's teardown."""

_TERMINAL: Final = pytest.StashKey[int]()


class Limit(Protocol):
    """The settings of `pytest-timeout` for one test."""

    timeout: float


class Overdue(SystemExit):
    """Ends a test. An exit, because uvloop lets only exits and interrupts out of its loop."""


def pytest_configure(config: pytest.Config) -> None:
    """Keep the run's own stderr: during a test, descriptor 2 is captured."""
    config.stash[_TERMINAL] = os.dup(2)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Limit) -> bool:
    """Arm the timers before a test's setup."""
    _arm(item, settings.timeout)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_cancel_timer(item: pytest.Item) -> bool:
    """Disarm the timers after a test's teardown, and when its setup or call has failed."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    faulthandler.cancel_dump_traceback_later()
    return True


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None, None, None]:
    """Limit the teardown of a failed test, whose timers are disarmed."""
    if signal.getitimer(signal.ITIMER_REAL)[0] == 0:
        _arm(item, GRACE)
    return (yield)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Limit what is left to do after the last test: a loop that was not closed may never end."""
    faulthandler.dump_traceback_later(GRACE, exit=True, file=session.config.stash[_TERMINAL])


def pytest_unconfigure() -> None:
    """Limit nothing any more: a worker that is done waits here for the others."""
    faulthandler.cancel_dump_traceback_later()


def stacks() -> str:
    """Return where each task of the running loop and each other thread waits."""
    out = io.StringIO()
    loop = asyncio._get_running_loop()
    for task in asyncio.all_tasks(loop) if loop is not None else ():
        out.write(f"Task {task.get_name()} {task.get_coro()}:\n")
        for frame in task.get_stack():
            code = frame.f_code
            line = linecache.getline(code.co_filename, frame.f_lineno or 0).strip()
            out.write(f"  {code.co_filename}:{frame.f_lineno} {code.co_name}: {line}\n")
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    for ident, frame in sys._current_frames().items():
        if ident != threading.get_ident():
            out.write(
                f"Thread {names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
            )
    return out.getvalue()


def _arm(item: pytest.Item, seconds: float) -> None:
    """Start the alarm, and the watchdog for a main thread that the alarm does not reach."""
    terminal = item.config.stash[_TERMINAL]

    def ring(_number: int, _frame: FrameType | None) -> None:
        __tracebackhide__ = True
        overdue = f"{item.nodeid} takes longer than its limit of {seconds:g} s"
        os.write(terminal, f"\n{overdue}\n".encode())
        item.add_report_section("call", "stacks", stacks())
        raise Overdue(overdue)

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=terminal)
