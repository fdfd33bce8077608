"""Runs a program that prints credentials: without a shell, with limited time and output."""

import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from subprocess import DEVNULL, PIPE, Popen, TimeoutExpired
from tempfile import TemporaryFile
from typing import IO, Final, NamedTuple

from proxy.core.errors import CredentialsRejected
from proxy.core.tolerant_json import read_object
from proxy.runtime.executors import Pool, start_in_thread
from proxy.settings.loading import PREFIX

SECONDS: Final = 15.0
MAX_OUTPUT: Final = 64 * 1024


class Program(NamedTuple):
    """A command, and variables over those of Millpond's environment, which may be secret.

    It inherits no setting of Millpond: these may contain passwords of other registries.
    """

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
    running = _Running(program, seconds)
    try:
        return await start_in_thread(partial(running.output, text.encode()), Pool.PROGRAM)
    finally:
        running.kill()  # when the wait is cancelled, the program ends, and the thread with it


class _Running:
    """One run of a program in a thread. asyncio's own pipes outlive a program that is killed."""

    def __init__(self, program: Program, seconds: float) -> None:
        self._program = program
        self._seconds = seconds
        self._deadline = 0.0
        self._process: Popen[bytes] | None = None
        self._is_killed = False

    def output(self, sent: bytes) -> Output:
        self._deadline = time.monotonic() + self._seconds  # without the wait for a thread
        with TemporaryFile() as question:  # unlike a pipe, it never fills up
            question.write(sent)
            question.seek(0)
            with self._started(question) as self._process:
                try:
                    assert self._process.stdout is not None
                    text = self._read(self._process.stdout)
                    return Output(self._process.wait(self._time_left()), text)
                except (TimeoutError, TimeoutExpired):
                    raise CredentialsRejected(
                        f"{self._program.name} does not end within {self._seconds:g} seconds"
                    ) from None
                finally:
                    self.kill()

    def kill(self) -> None:
        """Kill the program and its children. A second call does nothing."""
        if not self._is_killed and self._process is not None:
            self._is_killed = True
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)

    def _started(self, question: IO[bytes]) -> Popen[bytes]:
        try:
            return Popen(  # noqa: S603 - the operator names the program
                self._program.command,
                stdin=question,
                stdout=PIPE,
                stderr=DEVNULL,
                env=_inherited() | dict(self._program.env),
                start_new_session=True,
            )
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a command"
            raise CredentialsRejected(f"{self._program.name} cannot be run: {reason}") from None

    def _read(self, stdout: IO[bytes]) -> bytes:
        text = bytearray()
        poll = select.poll()
        poll.register(stdout, select.POLLIN)
        while poll.poll(self._time_left() * 1000):
            chunk = os.read(stdout.fileno(), MAX_OUTPUT)
            if not chunk:
                return bytes(text)
            text += chunk
            if len(text) > MAX_OUTPUT:
                raise CredentialsRejected(
                    f"{self._program.name} prints more than {MAX_OUTPUT} bytes"
                )
        raise TimeoutError

    def _time_left(self) -> float:
        return max(0.0, self._deadline - time.monotonic())


def _inherited() -> dict[str, str]:
    """Return Millpond's environment without its settings."""
    names = (name for name in os.environ if not name.upper().startswith(PREFIX))
    return {name: os.environ[name] for name in names}


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
