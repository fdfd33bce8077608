"""Starts the servers: for clients over TCP, and for the operator on the admin socket."""

import socket
from contextlib import AsyncExitStack
from dataclasses import dataclass
from ssl import SSLContext
from typing import Final

from aiohttp.web import ServerRunner

from proxy.runtime.metrics import CacheCounters
from proxy.web.acceptor import Acceptor
from proxy.web.admin.pages import Admin
from proxy.web.clients import Clients
from proxy.web.connection import Answers
from proxy.web.forwarded import TrustedProxies
from proxy.web.registry import Registry
from proxy.web.server import Handler, RegistryServer

ADMIN_CLIENTS: Final = 16


@dataclass(frozen=True, slots=True)
class Parts:
    """What answers requests, whichever socket they arrive on."""

    registry: Registry
    admin: Admin
    answers: Answers
    trusted: TrustedProxies
    counters: CacheCounters


class Servers:
    """The running servers. ``stack`` stops them; running responses get ``grace`` seconds."""

    def __init__(self, stack: AsyncExitStack, parts: Parts, grace: float) -> None:
        self._stack = stack
        self._parts = parts
        self._grace = grace
        self._servers: list[RegistryServer] = []

    @property
    def responses(self) -> int:
        """Number of responses in progress."""
        return sum(server.responses for server in self._servers)

    async def serve_operator(self, listener: socket.socket) -> None:
        """Accept the operator's connections."""
        clients = Clients(self._parts.counters)
        server = self._server(self._parts.admin.handle_trusted, clients)
        await self._start(server, Acceptor(listener, server, clients, limit=ADMIN_CLIENTS))

    async def serve_clients(
        self,
        listener: socket.socket,
        context: SSLContext | None,
        *,
        limit: int,
        send_timeout: float,
    ) -> Clients:
        """Accept at most ``limit`` connections at a time; return who is connected.

        ``send_timeout`` is for how many seconds a client may read nothing. ``context`` None serves
        plain HTTP.
        """
        clients = Clients(self._parts.counters, send_timeout)
        server = self._server(self._parts.admin.handle, clients)
        acceptor = Acceptor(listener, server, clients, limit=limit, context=context)
        await self._start(server, acceptor)
        return clients

    def _server(self, admin: Handler, clients: Clients) -> RegistryServer:
        parts = self._parts
        return RegistryServer(
            parts.registry.handle, admin, parts.answers, clients=clients, trusted=parts.trusted
        )

    async def _start(self, server: RegistryServer, acceptor: Acceptor) -> None:
        runner = ServerRunner(server, shutdown_timeout=self._grace)
        await runner.setup()
        self._stack.push_async_callback(runner.cleanup)
        acceptor.start()
        self._stack.push_async_callback(acceptor.close)
        self._servers.append(server)
