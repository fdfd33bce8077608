"""A client that reads bodies and keeps nothing, so that the server is what is measured.

`python -m benchmarks.pull URL SECONDS` pulls the same body again and again on one connection and
prints `[bytes, seconds]`, as a process of its own.
"""

import json
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self
from urllib.parse import urlsplit

_BUFFER = 1 << 20
_HEAD_LIMIT = 1 << 16


@dataclass(frozen=True, slots=True)
class Pull:
    """One body: its bytes; seconds from connecting to its last byte, and to its first."""

    size: int
    seconds: float
    first_byte: float

    @property
    def speed(self) -> float:
        """Megabytes a second."""
        return self.size / self.seconds / 1e6


class Connection:
    """One keep-alive connection; `receive_buffer` is the kernel's, in bytes, 0 its own choice."""

    def __init__(self, url: str, receive_buffer: int = 0, buffer: int = _BUFFER) -> None:
        parts = urlsplit(url)
        self._host = parts.netloc
        self._socket = socket.socket(socket.AF_INET)
        if receive_buffer:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._socket.settimeout(120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.connect((parts.hostname, parts.port))
        if parts.scheme == "https":
            context = ssl.create_default_context()
            context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
            self._socket = context.wrap_socket(self._socket, server_hostname=parts.hostname)
        self._buffer = memoryview(bytearray(buffer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def reset(self) -> None:
        """Have the connection torn down when it is left: the server sees ECONNRESET."""
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def ask(self, path: str, **headers: str) -> tuple[int, bytes, int]:
        """Send a GET; return the status, the body's beginning, and its whole length in bytes."""
        lines = [f"GET {path} HTTP/1.1", f"Host: {self._host}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self._socket.sendall("\r\n".join([*lines, "", ""]).encode())
        received = b""
        while b"\r\n\r\n" not in received:
            piece = self._socket.recv(_HEAD_LIMIT)
            assert piece, f"{path}: hung up after {received!r}"
            received += piece
        head, _, body = received.partition(b"\r\n\r\n")
        first, *rest = head.decode("latin-1").split("\r\n")
        fields = dict(line.lower().split(":", 1) for line in rest)
        assert "content-length" in fields, f"{path}: {head!r}"
        return int(first.split()[1]), body, int(fields["content-length"])

    def piece(self, limit: int = _BUFFER) -> memoryview:
        """Return the next bytes of the body, up to `limit`; valid until the next call."""
        count = self._socket.recv_into(self._buffer[:limit])
        assert count, "hung up in the middle of a body"
        return self._buffer[:count]

    def get(self, path: str, **headers: str) -> bytes:
        """Return a whole body; anything but 200 fails."""
        status, begin, length = self.ask(path, **headers)
        body = bytearray(begin)
        while len(body) < length:
            body += self.piece(length - len(body))
        assert status == 200, f"{path} → {status} {bytes(body[:200])!r}"
        return bytes(body)

    def drain(self, path: str) -> tuple[int, float]:
        """Read a body and forget it; return its bytes, and when its first byte was here."""
        status, begin, length = self.ask(path)
        assert status == 200, f"{path} → {status} {begin!r}"
        left = length - len(begin)
        first = time.perf_counter() if begin else 0.0
        while left:
            left -= len(self.piece(left))
            first = first or time.perf_counter()
        return length, first


def pull(base: str, path: str) -> Pull:
    """Pull one body over a new connection."""
    start = time.perf_counter()
    with Connection(base) as connection:
        size, first = connection.drain(path)
    return Pull(size, time.perf_counter() - start, first - start)


def pull_for(seconds: float, urls: Sequence[str]) -> list[tuple[int, float]]:
    """Pull from all urls at once for so long, each in a process; return bytes and seconds each."""
    argv = [sys.executable, "-m", __name__]
    running = [subprocess.Popen([*argv, url, str(seconds)], stdout=subprocess.PIPE) for url in urls]
    said = [process.communicate(timeout=300)[0] for process in running]
    assert not any(process.returncode for process in running), said
    return [(size, taken) for size, taken in map(json.loads, said)]


def _main(url: str, seconds: str) -> None:
    path, total = urlsplit(url).path, 0
    with Connection(url) as connection:
        start = time.perf_counter()
        while time.perf_counter() < start + float(seconds):
            total += connection.drain(path)[0]
        json.dump([total, time.perf_counter() - start], sys.stdout)


if __name__ == "__main__":
    _main(*sys.argv[1:])
