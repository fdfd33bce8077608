"""Runs a program that knows credentials: without a shell, with bounded time and output."""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from subprocess import DEVNULL, PIPE
from typing import Final, NamedTuple

from proxy.core.errors import CredentialsRejected
from proxy.core.tolerant_json import read_object

SECONDS: Final = 15.0
MAX_OUTPUT: Final = 64 * 1024


class Program(NamedTuple):
    """A command, and variables over those of Millpond's environment. It may not print secrets."""

    command: Sequence[str]
    env: Mapping[str, str]

    @property
    def name(self) -> str:
        """The program without its arguments, which may be secret."""
        return self.command[0]


class Output(NamedTuple):
    """What a program printed, and its exit status; negative for a signal."""

    status: int
    text: bytes


async def run(program: Program, text: str, seconds: float = SECONDS) -> Output:
    """Return the output of a program that reads ``text``. Raises ``CredentialsRejected``.

    Standard error is dropped, because it may contain a secret. The program leads its own process
    group, so that a child that it leaves behind ends with it.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *program.command,
            stdin=PIPE,
            stdout=PIPE,
            stderr=DEVNULL,
            env={**os.environ, **program.env},
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a command"
        raise CredentialsRejected(f"{program.name} cannot be run: {reason}") from None
    try:
        async with asyncio.timeout(seconds):
            return await _exchange(process, program, text.encode())
    except TimeoutError:
        raise CredentialsRejected(
            f"{program.name} does not end within {seconds:g} seconds"
        ) from None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def _exchange(process: asyncio.subprocess.Process, program: Program, sent: bytes) -> Output:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(ConnectionError):  # not every program reads what it is sent
        process.stdin.write(sent)
        await process.stdin.drain()
    process.stdin.close()
    text = bytearray()
    while chunk := await process.stdout.read(MAX_OUTPUT):
        text += chunk
        if len(text) > MAX_OUTPUT:
            raise CredentialsRejected(f"{program.name} prints more than {MAX_OUTPUT} bytes")
    return Output(await process.wait(), bytes(text))


def read_answer(program: Program, output: Output) -> dict[str, object]:
    """Return the JSON object that a program printed. Raises ``CredentialsRejected``."""
    if output.status != 0:
        raise CredentialsRejected(
            f"{program.name} ends with status {output.status}; run it by hand to see why"
        )
    document = read_object(output.text)
    if not document:
        raise CredentialsRejected(f"{program.name} prints no JSON object")
    return document
