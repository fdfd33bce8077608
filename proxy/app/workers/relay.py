"""Forwards requests to the main process, and its responses back, unchanged.

One header identifies the client to the main process. Clients cannot forge it: a worker overwrites
it on each request, and only workers can connect to the main process.
"""

import json
from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager
from dataclasses import asdict
from typing import Any, Final

import structlog
from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    UnixConnector,
)
from aiohttp.web import BaseRequest, StreamResponse
from multidict import CIMultiDict
from yarl import URL

from proxy.app.workers.reports import Reports
from proxy.core.errors import Overloaded, UpstreamUnavailable
from proxy.core.names import Digest, Target
from proxy.repository.results import LiveBlob, LocalBlob
from proxy.web import replies
from proxy.web.connection import Connection
from proxy.web.exchange import Exchange

CLIENT: Final = "Millpond-Client"
"""The header with the client's address, certificate, and whether it uses TLS."""

_ORIGIN: Final = "http://millpond"
_PIECE: Final = 128 * 1024
_CONNECT_SECONDS: Final = 10.0
"""Seconds that a request waits for a connection; then its client gets 503 and should retry."""

_HOP_BY_HOP: Final = (
    *("Connection", "Expect", "Keep-Alive", "Proxy-Connection"),
    *("TE", "Trailer", "Transfer-Encoding", "Upgrade"),
)
"""Headers between two neighbours (RFC 9110 §7.6.1)."""

log = structlog.get_logger(__name__)


class Relay:
    """Connections to the main process, at most ``limit``. Close it when done."""

    def __init__(self, path: str, reports: Reports, *, limit: int) -> None:
        self._reports = reports
        self._session = ClientSession(
            connector=UnixConnector(path, limit=limit, keepalive_timeout=30.0),
            auto_decompress=False,
            cookie_jar=DummyCookieJar(),
            timeout=ClientTimeout(total=None, connect=_CONNECT_SECONDS),
            read_bufsize=_PIECE,
            skip_auto_headers=("Accept", "Accept-Encoding", "Content-Type", "User-Agent"),
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._session.close()

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer a request as the main process does."""
        self._reports.relayed += 1
        try:
            async with self._ask(request) as answer:
                return await _copy(request, answer)
        except (ClientError, OSError) as error:
            log.warning("the main process does not answer", error=str(error))
            return replies.failed(Exchange(request), Overloaded("no answer; retry"))

    def rest_of(self, request: BaseRequest) -> "Rest":
        """Return the source of the rest of the blob that a request is for."""
        return Rest(self._ask, request)

    def _ask(
        self, request: BaseRequest, **more: str
    ) -> AbstractAsyncContextManager[ClientResponse]:
        path = request.raw_path if request.raw_path.startswith("/") else request.path_qs
        headers = _end_to_end(request.headers)
        headers[CLIENT] = _client(request)
        headers.update(more)
        return self._session.request(
            request.method,
            URL(_ORIGIN + path, encoded=True),
            headers=headers,
            data=request.content if request.can_read_body else None,
            allow_redirects=False,
        )


class Rest:
    """Asks the main process for the rest of a blob whose file cannot be read."""

    def __init__(self, ask: Any, request: BaseRequest) -> None:
        self._ask = ask
        self._request = request

    async def rest(
        self, target: Target, digest: Digest, failed: LocalBlob | LiveBlob, sent: range
    ) -> AsyncGenerator[bytes, None]:
        """Yield the bytes after those that were ``sent``. Raises ``UpstreamUnavailable``."""
        del failed  # the main process detects the damage
        offset = sent.stop
        try:
            async with self._ask(self._request, Range=f"bytes={offset}-") as answer:
                if answer.status not in (200, 206):
                    raise UpstreamUnavailable(f"{target}@{digest}: status {answer.status}")
                unwanted = offset if answer.status == 200 else 0
                async for chunk in answer.content.iter_any():
                    yield chunk[unwanted:]
                    unwanted = max(0, unwanted - len(chunk))
        except (ClientError, OSError) as error:
            raise UpstreamUnavailable(f"{target}@{digest} broke off") from error


async def _copy(request: BaseRequest, answer: ClientResponse) -> StreamResponse:
    """Send the main process's response; one that breaks off ends with a closed connection."""
    response = StreamResponse(
        status=answer.status, reason=answer.reason, headers=_end_to_end(answer.headers)
    )
    await response.prepare(request)
    try:
        async for chunk in answer.content.iter_any():
            await response.write(chunk)
        await response.write_eof()
    except (ClientError, OSError):  # either side has gone
        if request.transport is not None:
            request.transport.close()
    return response


def _end_to_end(headers: Any) -> CIMultiDict[str]:
    """Return the headers that are not about one connection (RFC 9110 §7.6.1)."""
    kept = CIMultiDict((name, _encodable(value)) for name, value in headers.items())
    named = ",".join(kept.getall("Connection", ())).split(",")
    for name in (*_HOP_BY_HOP, *(name.strip() for name in named if name.strip())):
        kept.popall(name, None)
    return kept


def _encodable(value: str) -> str:
    """Return a header's value with "?" for each byte that is not UTF-8: aiohttp would omit it."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def _client(request: BaseRequest) -> str:
    """Return the facts about the client of a connection."""
    connection = request.protocol
    certificate = connection.certificate if isinstance(connection, Connection) else None
    peer = connection.peername
    return json.dumps(
        {
            "address": str(peer[0]) if isinstance(peer, (list, tuple)) and peer else None,
            "is_tls": connection.ssl_context is not None,
            "version": list(request.version),
            "certificate": None if certificate is None else asdict(certificate),
        }
    )
