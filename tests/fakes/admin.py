"""A server that answers `/-/` as told: on a cache's socket, or over TCP behind a token."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.fakes.replies import error

Json = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    method: str
    path: str
    query: dict[str, str]
    body: str


@dataclass
class FakeAdmin:
    """What it holds, what it was asked, and how it fails.

    `answers` has the objects or NDJSON lines for "METHOD /path"; a tuple is an error's status and
    message, a text where it redirects to. `held` is how many lines come at once when an answer then waits for `release`.
    `breaks` cuts every answer before its end.
    """

    answers: dict[str, Any] = field(default_factory=dict)
    token: str | None = None
    held: int | None = None
    release: asyncio.Event = field(default_factory=asyncio.Event)
    breaks: bool = False
    asked: list[Asked] = field(default_factory=list)
    url: str = ""

    @asynccontextmanager
    async def on_socket(self, path: Path) -> AsyncIterator["FakeAdmin"]:
        runner = await self._runner()
        await web.UnixSite(runner, str(path)).start()
        try:
            yield self
        finally:
            await runner.cleanup()

    @asynccontextmanager
    async def over_tcp(self, tls: ssl.SSLContext | None = None) -> AsyncIterator["FakeAdmin"]:
        runner = await self._runner()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        scheme = "http" if tls is None else "https"
        self.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            await runner.cleanup()

    async def _runner(self) -> web.ServerRunner:
        runner = web.ServerRunner(web.Server(self._handle), shutdown_timeout=0.1)
        await runner.setup()
        return runner

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/-/healthz":
            return web.json_response({"status": "ok"})
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            return _refusal(401, "the token is wrong")
        body = (await request.read()).decode()
        self.asked.append(Asked(request.method, request.path, dict(request.query), body))
        answer = self.answers.get(f"{request.method} {request.path}", (404, "no such page"))
        if callable(answer):
            answer = answer(dict(request.query))
        match answer:
            case (int(status), str(message)):
                return _refusal(status, message)
            case str(elsewhere):
                return web.Response(status=307, headers={"Location": elsewhere})
            case list():
                return await self._stream(request, answer)
            case _:
                return web.json_response(answer)

    async def _stream(self, request: web.BaseRequest, lines: list[Json]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        for number, line in enumerate(lines):
            if number == self.held:
                await self.release.wait()
            await response.write(json.dumps(line).encode() + b"\n")
        if self.breaks:
            assert request.transport is not None
            request.transport.close()
        return response


def _refusal(status: int, message: str) -> web.Response:
    reply = error(status, "DENIED", message)
    return web.Response(status=reply.status, body=reply.body, headers=reply.headers)
