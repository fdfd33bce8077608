"""A relay before a real registry: it passes everything on, but breaks some blobs off midway.

Its log tells what was broken off and how it went on.
"""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.parts.process import wait_until

EVERY = 3
PIECE = 256 * 1024
_PER_CONNECTION = {"connection", "keep-alive", "transfer-encoding"}


@dataclass(frozen=True, slots=True)
class Passage:
    """One request and its answer: `sent` counts body bytes, `cut` says that not all were sent."""

    method: str
    path: str
    range: str | None
    authorized: bool
    status: int
    length: int
    sent: int
    cut: bool

    @property
    def is_blob(self) -> bool:
        """Tell whether a blob's bytes came along, all or a part."""
        return self.method == "GET" and "/blobs/" in self.path and self.status in {200, 206}


@dataclass
class Relay:
    """Passes requests on to `target`, a base URL; every third blob breaks off in the middle, once.

    A blob is counted when it is first asked for; the connection is closed after half of what
    Content-Length announces. `linger` is how long (seconds) the first of them stalls before that.
    """

    target: str
    linger: float = 0.0
    passages: list[Passage] = field(default_factory=list)
    url: str = ""
    _seen: dict[str, bool] = field(default_factory=dict)
    _lingered: bool = False
    _open: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def clear(self) -> None:
        """Forget everything: the next blob is the first again."""
        with self._lock:
            self.passages.clear()
            self._seen.clear()
            self._lingered = False

    def note(self, passage: Passage) -> None:
        """Add to the log."""
        with self._lock:
            self.passages.append(passage)

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Count an answer that is on its way."""
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def ended(self) -> list[Passage]:
        """Return what passed once no answer is on its way: a client may have it before the log."""
        wait_until(lambda: self._open == 0, "the relay's answers to end")
        return list(self.passages)

    def breaks(self, path: str) -> bool:
        """Tell whether this answer to a GET of a blob is to be cut."""
        with self._lock:
            if path in self._seen:
                return False
            self._seen[path] = len(self._seen) % EVERY == EVERY - 1
            return self._seen[path]

    def seconds_to_stall(self) -> float:
        """Return how long to wait before breaking off."""
        with self._lock:
            seconds, self._lingered = 0.0 if self._lingered else self.linger, True
            return seconds


class _Handler(BaseHTTPRequestHandler):
    """One connection to the relay, and one from it to the registry."""

    protocol_version = "HTTP/1.1"
    relay: Relay

    def setup(self) -> None:
        super().setup()
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._behind = HTTPConnection(urlsplit(self.relay.target).netloc, timeout=60)

    def finish(self) -> None:
        self._behind.close()
        with suppress(OSError):
            super().finish()

    def do_GET(self) -> None:
        kept = {k: v for k, v in self.headers.items() if k.lower() not in _PER_CONNECTION}
        self._behind.request(self.command, self.path, headers=kept)
        with self.relay.passing(), self._behind.getresponse() as answer:
            self._head(answer)
            self._pass_on(answer)

    do_HEAD = do_GET  # noqa: N815 - the name that is looked for

    def _head(self, answer: HTTPResponse) -> None:
        self.send_response_only(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in _PER_CONNECTION:
                self.send_header(name, value)
        if answer.length is None and self.command != "HEAD":
            self.send_header("Connection", "close")
        self.end_headers()

    def _pass_on(self, answer: HTTPResponse) -> None:
        length = int(answer.headers.get("Content-Length", 0))
        is_blob = self.command == "GET" and "/blobs/" in self.path and answer.status == 200
        cut = is_blob and length > 1 and self.relay.breaks(self.path)
        sent = self._body(answer, length // 2 if cut else None)
        self.relay.note(
            Passage(
                method=self.command,
                path=self.path,
                range=self.headers.get("Range"),
                authorized="Authorization" in self.headers,
                status=answer.status,
                length=length,
                sent=sent,
                cut=cut,
            )
        )
        if cut:
            time.sleep(self.relay.seconds_to_stall())
            self._behind.close()
            self.close_connection = True

    def _body(self, answer: HTTPResponse, limit: int | None) -> int:
        """Pass on a body, or its beginning; return how many bytes went out."""
        sent = 0
        while piece := answer.read(PIECE if limit is None else min(PIECE, limit - sent)):
            self.wfile.write(piece)
            sent += len(piece)
        self.wfile.flush()
        return sent

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - its name there
        """Stay silent: `passages` is the log."""


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Stay silent: a client that hangs up is none of our business."""


@contextmanager
def running(target: str, linger: float = 0.0) -> Iterator[Relay]:
    """Give a relay on a loopback port, which a thread serves."""
    relay = Relay(target, linger)
    handler = type("Handler", (_Handler,), {"relay": relay})
    with _Server(("127.0.0.1", 0), handler) as server:
        relay.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(
            target=server.serve_forever, args=(0.05,), name="relay", daemon=True
        )
        thread.start()
        try:
            yield relay
        finally:
            server.shutdown()
            thread.join()
