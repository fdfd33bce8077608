"""What every request and every answer have in common, whoever handles the path."""

import asyncio
from typing import TYPE_CHECKING

from aiohttp.web import BaseRequest, RequestHandler, StreamResponse

from proxy.web.forwarded import TrustedProxies

if TYPE_CHECKING:
    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage
    from aiohttp.streams import StreamReader

SERVER = "millpond"


class Request(BaseRequest):
    """A request whose answer names this server, also an answer that aiohttp makes by itself."""

    async def _prepare_hook(self, response: StreamResponse) -> None:
        response.headers["Server"] = SERVER  # aiohttp has put its own name there


class Requests:
    """Makes requests; ``remote`` of each is the client that a trusted proxy names, or the peer."""

    def __init__(self, trusted: TrustedProxies) -> None:
        self._trusted = trusted
        self._loop = asyncio.get_running_loop()

    def __call__(
        self,
        message: "RawRequestMessage",
        payload: "StreamReader",
        protocol: RequestHandler,
        writer: "AbstractStreamWriter",
        task: "asyncio.Task[None]",
    ) -> Request:
        """Return the request of a message."""
        peer = protocol.peername
        address = str(peer[0]) if isinstance(peer, (list, tuple)) and peer else None
        remote = None if address is None else self._trusted.client(address, message.headers)
        return Request(message, payload, protocol, writer, task, self._loop, remote=remote)
