"""A receiver of events on a real socket: what it got, and what it answers."""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Self

from aiohttp import web

from tests.parts.process import held

if TYPE_CHECKING:
    import socket


@dataclass(frozen=True)
class Received:
    path: str
    headers: Mapping[str, str]
    body: bytes
    at: float
    """Seconds of a monotonic clock."""

    @property
    def document(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Receiver:
    """Answers with the first of `answers` as long as there are some, then with 204."""

    answers: list[tuple[int, dict[str, str]]] = field(default_factory=list)
    received: list[Received] = field(default_factory=list)
    tls: ssl.SSLContext | None = None
    port: int = 0

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self._runner: web.ServerRunner | None = None
        self._kept: socket.socket | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()
        if self._kept is not None:
            self._kept.close()

    @property
    def url(self) -> str:
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://localhost:{self.port}/hook"

    async def start(self) -> None:
        """Listen; on the same port again after a `stop`."""
        self._runner = web.ServerRunner(web.Server(self._answer), shutdown_timeout=0.0)
        await self._runner.setup()
        if self._kept is None:
            self._kept, self.port = held("127.0.0.1")
        await web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls).start()

    async def stop(self) -> None:
        self.gate.set()
        if self._runner is not None:
            await self._runner.cleanup()

    def of(self, kind: str) -> list[dict[str, Any]]:
        """The CloudEvents of a kind that were taken."""
        found = [one.document for one in self.received]
        return [one for one in found if one["type"] == f"dev.millpond.{kind}"]

    async def _answer(self, request: web.BaseRequest) -> web.Response:
        body = await request.read()
        self.received.append(Received(request.path, request.headers, body, time.monotonic()))
        await self.gate.wait()
        status, headers = self.answers.pop(0) if self.answers else (204, {})
        return web.Response(status=status, headers=headers)
