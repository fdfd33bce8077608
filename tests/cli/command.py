"""The real command as a process: into a pipe, or on a terminal of a given width."""

import asyncio
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

ROOT = Path(__file__).parents[2]
Done = subprocess.CompletedProcess[str]


def run(*arguments: str, **environment: str) -> Done:
    return subprocess.run(
        [sys.executable, "-m", "proxy", *arguments],
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def refused(done: Done, *words: str, status: int = 2) -> None:
    assert done.returncode == status, done
    [line] = done.stderr.splitlines()
    for word in words:
        assert word in line


async def beside(*arguments: str, given: str = "", **environment: str) -> Done:
    """Run the command while this loop serves it."""
    async with begun(*arguments, **environment) as process:
        out, err = await asyncio.wait_for(process.communicate(given.encode()), 90)
    assert process.returncode is not None
    return Done(arguments, process.returncode, out.decode(), err.decode())


@asynccontextmanager
async def begun(*arguments: str, **environment: str) -> AsyncIterator[asyncio.subprocess.Process]:
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

    process: asyncio.subprocess.Process
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
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "proxy", *arguments),
        cwd=ROOT,
        env=environment | {"TERM": "xterm"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    )
    os.close(theirs)
    terminal = Terminal(process, lambda text: os.write(ours, text.encode()))
    loop = asyncio.get_running_loop()

    def read() -> None:
        try:
            piece = os.read(ours, 65536)
        except OSError:  # EIO: the other end is closed
            piece = b""
        terminal.written += piece.decode()
        if not piece:
            loop.remove_reader(ours)

    loop.add_reader(ours, read)
    try:
        yield terminal
        await asyncio.wait_for(process.wait(), 60)
        await asyncio.sleep(0.05)
    finally:
        loop.remove_reader(ours)
        if process.returncode is None:
            process.kill()
            await process.wait()
        os.close(ours)
