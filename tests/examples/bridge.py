"""Lets a script start `millpond` by a fork, without the seconds that its imports take.

A stub in the script's PATH sends its arguments, environment, directory and descriptors to a thread
here, which starts the program with ``tests.parts.forked`` and sends back the exit status.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.parts.forked import PROGRAM, Forked, started
from tests.parts.process import wait_until

_LONGEST: Final = 1 << 20

ENDLESS: Final = {"--watch", "--follow"}
"""Options of commands that run until Ctrl-C."""

INTERRUPTED: Final = 130

STUB: Final = """\
#!{python} -IS
import json, os, socket, sys
order = dict(argv=sys.argv[1:], env=dict(os.environ), cwd=os.getcwd())
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as bridge:
    bridge.connect({socket!r})
    socket.send_fds(bridge, [json.dumps(order).encode()], [0, 1, 2])
    sys.exit(bridge.recv(4)[0])
"""


@contextmanager
def stub(file: Path, place: Path) -> Iterator[None]:
    """Write the stub to a file; serve it on the socket ``place``."""
    file.write_text(STUB.format(python=sys.executable, socket=str(place)))
    file.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listening:
        listening.bind(str(place))
        listening.listen()
        threading.Thread(target=_serve, args=(listening,), daemon=True).start()
        try:
            yield
        finally:
            listening.shutdown(socket.SHUT_RDWR)


def _serve(listening: socket.socket) -> None:
    while True:
        try:
            asked, _ = listening.accept()
        except OSError:  # the end of the tests
            return
        threading.Thread(target=_start, args=(asked,), daemon=True).start()


def _start(asked: socket.socket) -> None:
    with asked:
        data, streams, _, _ = socket.recv_fds(asked, _LONGEST, 3)
        order = json.loads(data)
        folder = Path(order["cwd"])
        argv = [*PROGRAM, *order["argv"]]
        is_server = order["argv"][:1] == ["serve"]
        if is_server:
            argv += ["--listen", "127.0.0.1:0", "--storage", str(folder / "served")]
        process = started(argv, order["env"], folder, streams)
        for stream in streams:
            os.close(stream)
        if is_server:
            _stop(process, folder / "served" / "admin.sock")
        if ENDLESS & set(argv):
            _interrupt(process)
        status = process.wait()
        asked.send(bytes([0 if ENDLESS & set(argv) and status == INTERRUPTED else status & 0xFF]))


def _interrupt(process: "Forked | subprocess.Popen[bytes]") -> None:
    """Press Ctrl-C a moment after its loop has begun; a command that has failed has ended."""
    wait_until(lambda: process.poll() is not None or _has_loop(process.pid), "the command")
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1)
    process.send_signal(signal.SIGINT)


def _has_loop(pid: int) -> bool:
    with contextlib.suppress(OSError):  # a descriptor or the process has gone
        return any(
            "eventpoll" in str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()
        )
    return False


def _stop(server: "Forked | subprocess.Popen[bytes]", admin_socket: Path) -> None:
    """Stop a server as soon as it serves; one that has failed has ended."""
    wait_until(lambda: server.poll() is not None or admin_socket.is_socket(), "the server")
    server.send_signal(signal.SIGTERM)
