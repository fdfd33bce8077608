"""A registry that answers as a scenario likes, byte by byte: no HTTP library stands in its way."""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self


@dataclass(frozen=True)
class Asked:
    """A request without its body. `headers` have names in small letters."""

    method: str
    path: str
    headers: dict[str, str]


class Wire:
    """One connection of a client, to be answered on."""

    def __init__(self, writer: asyncio.StreamWriter, asked: Asked) -> None:
        self._writer = writer
        self._asked = asked

    async def send(self, data: bytes) -> None:
        """Send bytes, as fast as the client takes them."""
        if self._writer.is_closing():
            raise ConnectionResetError
        self._writer.write(data)
        await self._writer.drain()

    async def head(self, status: int, *headers: tuple[str, str]) -> None:
        """Send a status line and headers."""
        lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in headers)]
        await self.send("\r\n".join([*lines, "", ""]).encode("latin-1"))

    async def reply(self, status: int, body: bytes = b"", **headers: str) -> None:
        """Send a whole answer; `headers` with `_` for `-`."""
        named = [(name.replace("_", "-"), value) for name, value in headers.items()]
        await self.head(status, ("Content-Length", str(len(body))), *named)
        if self._asked.method != "HEAD":
            await self.send(body)

    async def document(self, document: Any, **headers: str) -> None:
        """Send JSON with status 200."""
        body = json.dumps(document).encode()
        await self.reply(200, body, **({"Content_Type": "application/json"} | headers))


Answer = Callable[[Asked, Wire], Awaitable[None]]
"""Answers one request. The connection ends when it raises."""


class Hostile:
    """The registry, on a loopback port, in the running loop."""

    def __init__(self) -> None:
        self.answer: Answer = _absent
        self.asked: list[Asked] = []
        self.port = 0
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """The registry's base URL."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=2**20)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            while asked := await _request(reader):
                self.asked.append(asked)
                await self.answer(asked, Wire(writer, asked))
        except (OSError, EOFError, asyncio.CancelledError):  # the client left, or all is over
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()


async def _request(reader: asyncio.StreamReader) -> Asked | None:
    with contextlib.suppress(asyncio.IncompleteReadError):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        line, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, path, _ = line.split(" ", 2)
        pairs = (field.partition(":") for field in fields)
        return Asked(method, path, {name.lower(): value.strip() for name, _, value in pairs})
    return None


async def _absent(_: Asked, wire: Wire) -> None:
    await wire.reply(404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}')
