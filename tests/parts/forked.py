"""The real program without the second that Python takes to import it.

A process that has imported the program waits here, one for each process of pytest. It forks for each
start, and the child becomes `python -m proxy` with its own arguments, environment, directory and
descriptors. Its id, signals and exit status are those of a process that was started in full. Tests
of imports, memory and stalls start the program in full, and MILLPOND_TEST_STARTS=full makes all do
so.
"""

import atexit
import contextlib
import functools
import gc
import io
import json
import os
import runpy
import secrets
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).resolve().parents[2]
PROGRAM: Final = (sys.executable, "-m", "proxy")
_FORMATS: Final = frozenset({"FORCE_COLOR", "GITHUB_ACTIONS", "PY_COLORS", "TERMINAL_WIDTH"})
"""Variables that libraries read when they are imported."""

_INTERPRETER: Final = frozenset({"PYTHONPATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"})
"""Variables of Python that may be set: the others change the interpreter itself."""

_LONGEST: Final = 1 << 20
"""Bytes of an order."""

_STARTING: Final = threading.Lock()
"""Threads that start programs at the same time share one server."""


class Forked:
    """A process that was forked for one start; its interface is that of `subprocess.Popen`."""

    def __init__(
        self,
        argv: Sequence[str],
        env: Mapping[str, str],
        cwd: Path | None,
        streams: Sequence[int],
        start_new_session: bool = False,
    ) -> None:
        """Start it; `streams` are the descriptors of its stdin, stdout and stderr."""
        order = {"argv": [*argv], "env": {**env}, "cwd": str(cwd or Path.cwd())}
        self.args = argv
        self.returncode: int | None = None
        self._status, theirs = os.pipe()
        try:
            data = json.dumps(order | {"session": start_new_session}).encode()
            with _STARTING:
                server = _server()
            socket.send_fds(server, [data], [*streams, theirs])
        finally:
            os.close(theirs)
        self.pid = self._told()

    def __del__(self) -> None:
        if self._status >= 0:
            os.close(self._status)

    def fileno(self) -> int:
        """Return a descriptor that can be read when the process has ended."""
        return self._status

    def poll(self) -> int | None:
        """Return the exit status, None while the process runs."""
        if self.returncode is None and select.select([self._status], [], [], 0)[0]:
            self._end()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status. Raises `subprocess.TimeoutExpired`."""
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired([*self.args], timeout or 0)
            self._end()
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: int) -> None:
        """Send a signal; does nothing when the process has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)

    def _end(self) -> None:
        self.returncode = self._told()
        os.close(self._status)
        self._status = -1

    def _told(self) -> int:
        """Return the next number that the server writes: the id, then the exit status."""
        data = os.read(self._status, 4)
        assert len(data) == 4, "the process that forks has ended"
        return int.from_bytes(data, "little", signed=True)


def started(
    argv: Sequence[str],
    env: Mapping[str, str],
    cwd: Path | None,
    streams: Sequence[int],
    *,
    start_new_session: bool = False,
) -> "Forked | subprocess.Popen[bytes]":
    """Start a program: forked if it is Millpond as it is started everywhere, else in full."""
    if can_fork(argv, env):
        return Forked(argv, env, cwd, streams, start_new_session)
    own, out, err = streams
    return subprocess.Popen(
        argv,
        stdin=own,
        stdout=out,
        stderr=err,
        cwd=cwd,
        env=env,
        start_new_session=start_new_session,
    )


def can_fork(argv: Sequence[str], env: Mapping[str, str]) -> bool:
    """Return whether a fork is like a full start: nothing that imports depend on differs."""
    if os.environ.get("MILLPOND_TEST_STARTS") == "full":
        return False
    interpreter = {name for name in env if name.startswith("PYTHON")}
    is_alike = interpreter <= _INTERPRETER and env.get("PYTHONPATH", str(ROOT)) == str(ROOT)
    return tuple(argv[:3]) == PROGRAM and is_alike and not _FORMATS & env.keys()


@functools.cache
def _server() -> socket.socket:
    """Start the process that forks; it ends when this one does."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LONGEST)
    environment = {name: value for name, value in os.environ.items() if name not in _FORMATS}
    with theirs:
        subprocess.Popen(
            [sys.executable, "-m", "tests.parts.forked", str(theirs.fileno())],
            cwd=ROOT,
            env=environment,
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        ).returncode = 0  # nobody waits for it
    atexit.register(ours.close)
    return ours


def main() -> None:
    """Import the program, and fork for each order; in the child, become the program."""
    gc.disable()
    _import_program()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as orders:
        order = _next_child(orders)
    _become(order)
    runpy.run_module("proxy", run_name="__main__", alter_sys=True)


def _import_program() -> None:
    from proxy.cli import server  # noqa: PLC0415 - slow

    server._import_structlog()
    from proxy.access import api_tokens, htpasswd, review  # noqa: F401, PLC0415
    from proxy.cli import client, connect, serving  # noqa: F401, PLC0415
    from proxy.services.bundle import packages, signatures  # noqa: F401, PLC0415


def _next_child(orders: socket.socket) -> dict[str, Any]:
    """Fork until nobody orders any more; return, in each child, its order."""
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    while True:
        readable, _, _ = select.select([orders, woken], [], [])
        if woken in readable:
            os.read(woken, 4096)
            _report_ends(running)
        if orders in readable:
            data, descriptors, _, _ = socket.recv_fds(orders, _LONGEST, 4)
            if not data:
                for pid in running:
                    os.kill(pid, signal.SIGKILL)
                os._exit(0)
            if (pid := os.fork()) == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                return json.loads(data) | {"streams": descriptors[:3]}
            for descriptor in descriptors[:3]:
                os.close(descriptor)
            running[pid] = descriptors[3]
            _tell(descriptors[3], pid)


def _report_ends(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        descriptor = running.pop(pid)
        _tell(descriptor, os.waitstatus_to_exitcode(status))
        os.close(descriptor)


def _tell(descriptor: int, number: int) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(descriptor, number.to_bytes(4, "little", signed=True))


def _become(order: dict[str, Any]) -> None:
    """Take over the arguments, environment, directory and descriptors of an order."""
    from proxy.upstream import hops  # noqa: PLC0415 - slow

    if order["session"]:
        os.setsid()
    os.chdir(order["cwd"])
    for number, descriptor in enumerate(order["streams"]):
        os.dup2(descriptor, number)
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    os.environ.clear()
    os.environ.update(order["env"])
    sys.argv[:] = order["argv"][2:]
    hops.INSTANCE = f"millpond-{secrets.token_hex(8)}"  # each process has its own name
    sys.stdin = sys.__stdin__ = io.TextIOWrapper(io.BufferedReader(io.FileIO(0)), "utf-8")
    sys.stdout = sys.__stdout__ = _writer(1, "strict")
    sys.stderr = sys.__stderr__ = _writer(2, "backslashreplace")
    gc.enable()


def _writer(number: int, errors: str) -> io.TextIOWrapper:
    """Return a stream as Python makes it for a standard descriptor."""
    is_unbuffered = "PYTHONUNBUFFERED" in os.environ
    raw: Any = io.FileIO(number, "w", closefd=False)
    return io.TextIOWrapper(
        raw if is_unbuffered else io.BufferedWriter(raw),
        encoding="utf-8",
        errors=errors,
        line_buffering=number == 2 or os.isatty(number),
        write_through=is_unbuffered,
    )


if __name__ == "__main__":
    main()
