"""The real command as a process: into a pipe, or on a terminal of a given width."""

import asyncio
import codecs
import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from tests.parts.forked import PROGRAM, Forked, started

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]
Process = Forked | subprocess.Popen[bytes]


def run(*arguments: str, **environment: str) -> Done:
    with TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        streams = (0, out.fileno(), err.fileno())
        process = started([*PROGRAM, *arguments], os.environ | environment, ROOT, streams)
        try:
            status = process.wait(90)
        finally:
            process.kill()
        return _done(arguments, status, out, err)


def _done(arguments: tuple[str, ...], status: int, out: IO[str], err: IO[str]) -> Done:
    out.seek(0)
    err.seek(0)
    return Done(arguments, status, out.read(), err.read())


async def ended(process: Process, within: float) -> int:
    """Return the exit status; this loop goes on meanwhile."""
    async with asyncio.timeout(within):
        while (status := process.poll()) is None:
            await asyncio.sleep(0.005)
    return status


def refused(done: Done, *words: str, status: int = 2) -> None:
    assert done.returncode == status, done
    [line] = done.stderr.splitlines()
    for word in words:
        assert word in line


async def beside(*arguments: str, given: str = "", **environment: str) -> Done:
    """Run the command while this loop serves it."""
    with TemporaryFile("w+") as into, TemporaryFile("w+") as out, TemporaryFile("w+") as err:
        into.write(given)
        into.seek(0)
        streams = (into.fileno(), out.fileno(), err.fileno())
        process = started([*PROGRAM, *arguments], os.environ | environment, ROOT, streams)
        try:
            status = await ended(process, 90)
        finally:
            process.kill()
        return _done(arguments, status, out, err)


@asynccontextmanager
async def begun(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Start the command in full, with pipes."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments),
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@dataclass
class Terminal:
    """What a person sees: all that was written, bars and their erasing included."""

    process: Process
    type: Callable[[str], object]
    written: str = ""

    async def shows(self, words: str) -> None:
        async with asyncio.timeout(60):
            while words not in self.written:
                await asyncio.sleep(0.01)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self.written.splitlines()]


@asynccontextmanager
async def on_terminal(*arguments: str, width: int = 100) -> AsyncIterator[Terminal]:
    """Run the command on a terminal; leaving waits for its end."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, width, 0, 0))
    hidden = {"COLUMNS", "LINES", "NO_COLOR", "CI"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["TERM"] = "xterm"
    streams = (theirs, theirs, theirs)
    argv = [*PROGRAM, *arguments]
    process = started(argv, environment, ROOT, streams, start_new_session=True)
    os.close(theirs)
    terminal = Terminal(process, lambda text: os.write(ours, text.encode()))
    loop = asyncio.get_running_loop()
    text, closed = codecs.getincrementaldecoder("utf-8")(), asyncio.Event()

    def read() -> None:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # EIO: the other end is closed, and all that was written is read
            piece = b""
        terminal.written += text.decode(piece)
        if not piece:
            loop.remove_reader(ours)
            closed.set()

    loop.add_reader(ours, read)
    try:
        yield terminal
        await ended(process, 60)
        await asyncio.wait_for(closed.wait(), 60)
    finally:
        loop.remove_reader(ours)
        process.kill()
        process.wait()
        os.close(ours)
