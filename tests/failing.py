"""A disk that fails on command: any call of ours into the file system or SQLite, told by its place.

A *site* is one line of ``proxy/`` that makes one such call. All that are passed are written down, so
that a test can fail each of them in turn without a list of its own.
"""

import errno
import io
import os
import sqlite3
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import pytest

import proxy
from proxy.index.database import Database

ROOT = Path(proxy.__file__).parent
WRITES = ("posix_fallocate", "pwrite", "fsync", "rename", "mkdir", "fchmod")
READS = ("listdir", "scandir", "stat", "fstat", "statvfs", "pread", "sendfile", "dup")
SHARED = ("remove", "create", "_status")
"""What is called for several purposes, each of which is a site of its own."""

INDEX = ("Database.transact", "Database.reader")
"""Each write of the index, and each connection that reads."""


class Site(NamedTuple):
    """Where in ``proxy/`` which call is made."""

    call: str
    place: str

    def __str__(self) -> str:
        return f"{self.call} at {self.place}"


class Fault(NamedTuple):
    """What a call does instead of what it should; it gets the real one and its arguments."""

    name: str
    act: Callable[..., Any]
    is_felt: bool = True
    """It is a failure of the disk, to be counted."""


def error(number: int) -> Fault:
    def act(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    return Fault(errno.errorcode[number], act)


def sqlite(code: int, message: str) -> Fault:
    def act(*_: Any, **__: Any) -> None:
        failure = sqlite3.DatabaseError(message)
        failure.sqlite_errorcode = code
        raise failure

    return Fault(message, act)


def _half_written(real: Callable[..., int], fd: int, data: memoryview, offset: int) -> int:
    return real(fd, data[: max(1, len(data) // 2)], offset)


def _unflushed(real: Callable[..., Any], fd: int, mode: str) -> Any:
    """Open a file that takes all that is written, and cannot bring it to the disk."""
    if "w" not in mode:
        return _unreadable(fd)

    class Full(io.FileIO):
        def write(self, _: Any) -> int:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    buffered = io.BufferedWriter(Full(fd, "w"))
    return buffered if "b" in mode else io.TextIOWrapper(buffered)


def _unreadable(fd: int) -> Any:
    class Bad(io.FileIO):
        def readall(self) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    return Bad(fd)


FULL, BROKEN, READ_ONLY = error(errno.ENOSPC), error(errno.EIO), error(errno.EROFS)
SHORT = Fault("short write", _half_written, is_felt=False)
SHRUNK = Fault("nothing there", lambda *_, **__: b"")
NOT_SENT = Fault("nothing sent", lambda *_, **__: 0)
STREAM = Fault("stream fails", _unflushed)


def faults_of(call: str) -> list[Fault]:
    """Return how a call can fail."""
    if call in INDEX:
        return [
            sqlite(sqlite3.SQLITE_FULL, "database or disk is full"),
            sqlite(sqlite3.SQLITE_IOERR, "disk I/O error"),
            sqlite(sqlite3.SQLITE_CORRUPT, "database disk image is malformed"),
            sqlite(sqlite3.SQLITE_BUSY, "database is locked"),
        ]
    special = {
        "open": [FULL, BROKEN, error(errno.EMFILE)],
        "pwrite": [FULL, BROKEN, SHORT],
        "pread": [BROKEN, SHRUNK],
        "sendfile": [BROKEN, NOT_SENT],
        "unlink": [BROKEN, READ_ONLY],
        "fdopen": [STREAM],
        "dup": [error(errno.EMFILE)._replace(is_felt=False)],
    }
    return special.get(call, [FULL, BROKEN] if call in WRITES else [BROKEN])


@dataclass
class Failure:
    """Calls that fail, and how often they did; ``first`` and ``last`` count from 1."""

    matches: Callable[[Site], bool]
    fault: Fault
    first: int = 1
    last: float = 1
    passed: int = field(default=0, init=False)
    fired: int = field(default=0, init=False)

    def meets(self, site: Site) -> bool:
        """Tell whether this very call fails."""
        if not self.matches(site):
            return False
        self.passed += 1
        fails = self.first <= self.passed <= self.last
        self.fired += fails
        return fails


class FailingDisk:
    """Writes down the sites that are passed, and lets calls fail."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: set[Site] = set()
        self.failed: set[str] = set()
        """Which calls failed the last time."""
        self._failures: list[Failure] = []
        for call in ("open", "unlink", "fdopen", *WRITES, *READS):
            monkeypatch.setattr(os, call, self._watched(call, getattr(os, call)))
        for name in INDEX:
            call = name.partition(".")[2]
            monkeypatch.setattr(Database, call, self._watched(name, getattr(Database, call)))

    @contextmanager
    def failing(self, *failures: Failure) -> Iterator[None]:
        """Let these happen inside."""
        self._failures = list(failures)
        self.failed.clear()
        try:
            yield
        finally:
            self._failures = []

    def _watched(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            site = _site(call, sys._getframe(1))
            if site is None:
                return real(*args, **kwargs)
            self.seen.add(site)
            for failure in self._failures:
                if failure.meets(site):
                    self.failed.add(call)
                    return failure.fault.act(real, *args, **kwargs)
            return real(*args, **kwargs)

        return watched


def _site(call: str, frame: FrameType | None) -> Site | None:
    """Return which place in ``proxy/`` makes the call, itself or through ``pathlib``."""
    while frame is not None and Path(frame.f_code.co_filename).name in ("pathlib.py", "_local.py"):
        frame = frame.f_back
    place = _place(frame)
    if place is None or frame is None:
        return None
    above = _place(frame.f_back) if frame.f_code.co_name in SHARED else None
    return Site(call, place if above is None else f"{place} for {above}")


def _place(frame: FrameType | None) -> str | None:
    if frame is None or not frame.f_code.co_filename.startswith(f"{ROOT}/"):
        return None
    return f"{frame.f_code.co_filename.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
