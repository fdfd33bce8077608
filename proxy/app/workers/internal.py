"""The server of the main process for its workers: HTTP over a socket that only they can reach.

A request counts for its client, which a worker names in a header.
"""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from aiohttp import HttpVersion
from aiohttp.web import BaseRequest, RequestHandler

from proxy.access.identity import Certificate
from proxy.app.workers.relay import CLIENT
from proxy.web.clients import Clients
from proxy.web.connection import Connection
from proxy.web.forwarded import TrustedProxies
from proxy.web.server import Handler, RegistryServer

if TYPE_CHECKING:
    import asyncio

    from aiohttp.abc import AbstractStreamWriter
    from aiohttp.http import RawRequestMessage
    from aiohttp.streams import StreamReader

MAX_FIELD: Final = 128 * 1024
"""Bytes of one header field; workers have already refused what clients may not send."""

MAX_HEADERS: Final = 256


@dataclass(frozen=True, slots=True)
class _Client:
    """Who sends a relayed request."""

    address: str | None
    is_tls: bool
    version: HttpVersion
    certificate: Certificate | None


class InternalServer(RegistryServer):
    """Answers relayed requests; it has no response cache, because workers have one."""

    def __init__(
        self, registry: Handler, own: Handler, clients: Clients, trusted: TrustedProxies
    ) -> None:
        super().__init__(registry, own, _never_cached, clients=clients, trusted=trusted)
        self._kwargs |= {"max_field_size": MAX_FIELD, "max_headers": MAX_HEADERS}

    def __call__(self) -> RequestHandler:
        """Return the protocol of one connection of a worker."""
        return _InternalConnection(
            self, loop=self._loop, lookup=self._lookup, clients=self._clients, **self._kwargs
        )

    def _request(
        self,
        message: "RawRequestMessage",
        payload: "StreamReader",
        protocol: RequestHandler,
        writer: "AbstractStreamWriter",
        task: "asyncio.Task[None]",
    ) -> BaseRequest:
        assert isinstance(protocol, _InternalConnection)
        client = _read(message.headers[CLIENT])
        protocol.client = client
        protocol.certificate = client.certificate
        message = message._replace(version=client.version)
        request = super()._request(message, payload, protocol, writer, task)
        if not client.is_tls:
            return request
        return request.clone(scheme="https", remote=request.remote or "")


class _InternalConnection(Connection):
    """A connection of a worker, which relays requests of many clients."""

    __slots__ = ("client",)

    client: _Client | None

    def __init__(self, *args: Any, **named: Any) -> None:
        self.client = None
        super().__init__(*args, **named)

    @property
    def peername(self) -> Any:
        """The address of the client, as a connection of it would have it."""
        return None if self.client is None else (self.client.address, 0)


def _read(header: str) -> _Client:
    """Return the facts about a client in a worker's header."""
    said = json.loads(header)
    names = said["certificate"]
    certificate = None
    if names is not None:
        lists = (tuple(names[kind]) for kind in ("emails", "dns", "uris"))
        certificate = Certificate(names["common_name"], *lists)
    return _Client(said["address"], said["is_tls"], HttpVersion(*said["version"]), certificate)


def _never_cached(head: bytes, client: str | None, certificate: Certificate | None) -> None:
    """Never cache a request."""
    del head, client, certificate
