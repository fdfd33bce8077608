"""Asks a running Millpond, over its admin socket or over TCP. Knows nothing of terminals."""

import os
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import BaseConnector, ClientError, ClientResponse, ClientSession, ClientTimeout
from aiohttp.client_exceptions import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientConnectorSSLError,
)
from yarl import URL

from proxy.cli.replies import Document, Query, Refused, Unanswered, parsed
from proxy.core.tolerant_json import as_list, read_object

CONNECT_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 10.0
ERROR_BYTES: Final = 64 * 1024


class Client:
    """One server. ``where`` is how people know it; ``base`` is what its paths are laid under."""

    def __init__(self, session: ClientSession, base: URL, where: str) -> None:
        self._session = session
        self._base = base
        self._where = where

    async def probe(self) -> None:
        """Return when the server answers at all. Raises ``Unanswered``."""
        within = ClientTimeout(total=PROBE_SECONDS)
        try:
            async with self._session.get(self._url("/-/healthz", {}), timeout=within):
                pass
        except (ClientError, TimeoutError, OSError) as error:
            raise self._unanswered(error) from None

    async def ask(
        self, method: str, path: str, query: Query | None = None, body: bytes | None = None
    ) -> Document:
        """Return the JSON object that is the answer. Raises ``Refused``, ``Unanswered``."""
        return parsed(await self.read(method, path, query, body))

    async def read(
        self, method: str, path: str, query: Query | None = None, body: bytes | None = None
    ) -> bytes:
        """Return the body of the answer. Raises ``Refused``, ``Unanswered``."""
        async with self._answer(method, self._url(path, query), body) as response:
            return await response.read()

    async def lines(
        self, method: str, path: str, query: Query | None = None
    ) -> AsyncIterator[bytes]:
        """Yield the lines of the answer as they come, without their ends.

        Raises ``Refused``; ``Unanswered``, also when the answer breaks off.
        """
        begun: list[bytes] = []
        async with self._answer(method, self._url(path, query), None) as response:
            async for piece in response.content.iter_any():
                first, *others = piece.split(b"\n")
                begun.append(first)
                for other in others:
                    yield b"".join(begun)
                    begun = [other]
        if last := b"".join(begun):
            yield last

    @asynccontextmanager
    async def _answer(
        self, method: str, url: URL, body: bytes | None
    ) -> AsyncIterator[ClientResponse]:
        try:
            async with self._session.request(
                method, url, data=body, allow_redirects=False
            ) as response:
                if response.status != 200:
                    text = await response.content.read(ERROR_BYTES)
                    raise Refused(response.status, self._message(response.status, text))
                yield response
        except (ClientError, TimeoutError, OSError) as error:
            raise self._unanswered(error) from None

    def _url(self, path: str, query: Query | None) -> URL:
        return self._base.with_path(self._base.path.rstrip("/") + path).with_query(query or {})

    def _message(self, status: int, text: bytes) -> str:
        is_unknown = status == 401 and "Authorization" not in self._session.headers
        hint = "; give the admin token with --token-file FILE" if is_unknown else ""
        for error in as_list(read_object(text).get("errors")):
            if isinstance(error, dict) and error.get("message"):
                return " ".join(str(error["message"]).split()) + hint
        return f"the server answers with HTTP status {status}{hint}"

    def _unanswered(self, error: Exception) -> Unanswered:
        match error:
            case ClientConnectorCertificateError(certificate_error=ssl.SSLError() as problem):
                return Unanswered(f"{self._where}: {_untrusted(problem)}")
            case ClientConnectorSSLError(os_error=ssl.SSLError() as problem):
                return Unanswered(f"{self._where}: TLS fails: {_named(problem)}")
            case ClientConnectorError():
                number = error.os_error.errno
                reason = os.strerror(number) if number and number > 0 else str(error.os_error)
                return Unanswered(f"{self._where}: {reason}", number)
            case TimeoutError():
                return Unanswered(f"{self._where}: no answer in time")
            case _:
                return Unanswered(f"{self._where}: the answer broke off")


@asynccontextmanager
async def connected(
    connector: BaseConnector | None, base: URL, where: str, token: str | None = None
) -> AsyncIterator[Client]:
    """Open a client of the server at ``base``; ``token`` goes along with every request."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    patience = ClientTimeout(total=None, connect=CONNECT_SECONDS)
    async with ClientSession(connector=connector, headers=headers, timeout=patience) as session:
        yield Client(session, base, where)


def _untrusted(problem: ssl.SSLError) -> str:
    """Return why a server's certificate is refused, and what helps."""
    reason = problem.verify_message if isinstance(problem, ssl.SSLCertVerificationError) else ""
    return (
        f"its certificate is not trusted: {reason or _named(problem)}; if a private authority "
        "signed it, name that one's certificate with --ca-file FILE"
    )


def _named(problem: ssl.SSLError) -> str:
    """Return OpenSSL's reason in words, as ``wrong version number``."""
    return (problem.reason or str(problem)).replace("_", " ").lower()
