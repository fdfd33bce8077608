"""Findings of checks. A check is a function that returns a ``Finding``; ``ran`` bounds its time."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from threading import Thread
from typing import Final

from proxy.core.errors import RegistryError

CHECK_SECONDS: Final = 15.0

_ELSEWHERE: Final = "look at the log of the other side, and at proxies and firewalls in between"


class Status(StrEnum):
    """The status of a check."""

    OK = "ok"
    WARNING = "warning"
    """The check passed, but something needs attention."""
    FAILED = "failed"
    SKIPPED = "skipped"
    """The check does not apply, or another one has to succeed first."""


@dataclass(frozen=True, slots=True)
class Finding:
    """The finding of a check, without secrets; ``remedy`` is the advice for a problem."""

    status: Status
    detail: str
    remedy: str = ""


Check = Callable[[], Awaitable[Finding]]


@dataclass(frozen=True, slots=True)
class Result:
    """The finding of one check; ``subject`` is what was checked, ``seconds`` how long it took."""

    subject: str
    check: str
    status: Status
    detail: str
    remedy: str
    seconds: float


def ok(detail: str) -> Finding:
    """Return the finding of a check that passed."""
    return Finding(Status.OK, detail)


def warning(detail: str, remedy: str) -> Finding:
    """Return the finding that something needs attention."""
    return Finding(Status.WARNING, detail, remedy)


def failed(detail: str, remedy: str) -> Finding:
    """Return the finding of a check that failed."""
    return Finding(Status.FAILED, detail, remedy)


def skipped(reason: str) -> Finding:
    """Return the finding of a check that does not apply."""
    return Finding(Status.SKIPPED, reason)


def blocking(check: Callable[[], Finding]) -> Check:
    """Return a check that runs in a thread, which is abandoned after a timeout.

    A directory on an unreachable file server blocks a thread forever.
    """

    async def run() -> Finding:
        loop = asyncio.get_running_loop()
        found: asyncio.Future[Finding] = loop.create_future()

        def work() -> None:
            try:
                end = partial(found.set_result, check())
            except Exception as error:
                end = partial(found.set_exception, error)
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(lambda: None if found.done() else end())

        Thread(target=work, daemon=True).start()
        return await found

    return run


async def ran(subject: str, name: str, check: Check, seconds: float = CHECK_SECONDS) -> Result:
    """Return the result of a check, which may take ``seconds``."""
    began = time.monotonic()
    try:
        async with asyncio.timeout(seconds):
            found = await check()
    except TimeoutError:
        found = failed(f"no answer within {seconds:g} seconds", "look at the network and its load")
    except RegistryError as error:
        found = failed(error.message, _ELSEWHERE)
    except OSError as error:
        found = failed(error.strerror or type(error).__name__, _ELSEWHERE)
    except Exception as error:  # the other checks still count
        found = failed(f"the check broke off ({type(error).__name__})", _ELSEWHERE)
    took = round(time.monotonic() - began, 3)
    return Result(subject, name, found.status, found.detail, found.remedy, took)
