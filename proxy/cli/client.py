"""An HTTP client of a running Millpond, over its admin socket or over TCP. Prints nothing."""

import asyncio
import json
import os
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from aiohttp import BaseConnector, ClientError, ClientResponse, ClientSession, ClientTimeout
from aiohttp.client_exceptions import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientConnectorSSLError,
)
from yarl import URL

from proxy.core.tolerant_json import as_list, read_object

CONNECT_SECONDS: Final = 10.0
PROBE_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 60.0
"""A stream of events has at least a comment every 15 seconds."""
ERROR_BYTES: Final = 64 * 1024

Query = Mapping[str, str]


class NoAnswer(Exception):
    """There is no answer, or one that cannot be parsed; the message is one line.

    ``errno`` is the reason why there is no connection, None if there was one.
    """

    def __init__(self, message: str, errno: int | None = None) -> None:
        super().__init__(message)
        self.errno = errno


class ErrorAnswer(Exception):
    """The server answered with an error: its HTTP status, and its message as one line."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Document(dict[str, Any]):
    """A JSON object from the server. A missing key raises ``NoAnswer``."""

    def __missing__(self, key: str) -> Any:
        raise NoAnswer(f"the server's answer has no {key!r}; check that its version is the same")


class ServerEvent(NamedTuple):
    """An event of a stream: its id, by which the stream can be continued, and its data."""

    id: str
    data: str


class Client:
    """A client of one server; ``where`` names the server in errors."""

    def __init__(self, session: ClientSession, base: URL, where: str) -> None:
        self._session = session
        self._base = base
        self._where = where

    async def probe(self) -> None:
        """Return if the server answers. Raises ``NoAnswer``."""
        timeout = ClientTimeout(total=PROBE_SECONDS)
        try:
            async with self._session.get(self._url("/-/healthz", {}), timeout=timeout):
                pass
        except (ClientError, TimeoutError, OSError) as error:
            raise self._unanswered(error) from None

    async def ask(
        self, method: str, path: str, query: Query | None = None, body: bytes | None = None
    ) -> Document:
        """Return the answer, a JSON object. Raises ``ErrorAnswer``, ``NoAnswer``."""
        return _parsed(await self.read(method, path, query, body))

    async def read(
        self, method: str, path: str, query: Query | None = None, body: bytes | None = None
    ) -> bytes:
        """Return the body of the answer. Raises ``ErrorAnswer``, ``NoAnswer``."""
        async with self._answer(method, self._url(path, query), body) as response:
            return await response.read()

    async def send(
        self, path: str, query: Query, pieces: AsyncIterator[bytes], size: int
    ) -> Document:
        """Send a body of ``size`` bytes with PUT; return the answer. Raises as ``ask``."""
        headers = {"Content-Length": str(size)}
        async with self._answer("PUT", self._url(path, query), pieces, headers) as response:
            return _parsed(await response.read())

    async def bytes_of(self, path: str, query: Query) -> AsyncIterator[bytes]:
        """Yield the body of an answer as it arrives. Raises ``ErrorAnswer``, ``NoAnswer``."""
        async with self._answer("GET", self._url(path, query), None) as response:
            async for piece in response.content.iter_any():
                yield piece

    async def objects(self, path: str, query: Query) -> AsyncGenerator[Document]:
        """Yield the JSON objects of an answer that has one a line.

        Raises ``ErrorAnswer``; and ``NoAnswer``, also if the answer breaks off.
        """
        async for line in self.lines("GET", path, query):
            yield _parsed(line)

    async def follow(
        self, method: str, path: str, query: Query, show: Callable[[bytes, Document], None]
    ) -> Document:
        """Pass the line of each event of long work to ``show``; return the last event, ``done``.

        Raises ``ErrorAnswer``; and ``NoAnswer``, also if the events end before ``done``.
        """
        event = Document()
        async for line in self.lines(method, path, query):
            event = _parsed(line)
            show(line, event)
        if event.get("event") != "done":
            raise NoAnswer("the server stopped before the end; run the command again to continue")
        return event

    @asynccontextmanager
    async def events(
        self, path: str, query: Query, last_id: str = ""
    ) -> AsyncIterator[AsyncIterator[ServerEvent]]:
        """Open a stream of server-sent events; those after ``last_id`` come first.

        The server has accepted the subscription when the context is entered. Raises
        ``ErrorAnswer``; and ``NoAnswer``, also if nothing arrives for ``SILENCE_SECONDS``.
        """
        headers = {"Last-Event-ID": last_id} if last_id else {}
        async with self._answer("GET", self._url(path, query), None, headers) as response:
            yield self._events_of(response, last_id)

    async def _events_of(
        self, response: ClientResponse, last_id: str
    ) -> AsyncIterator[ServerEvent]:
        """Yield the events of a stream (WHATWG HTML §9.2)."""
        lines, fields = aiter(_lines_of(response)), dict[str, str]()
        while (line := await self._soon(lines)) is not None:
            name, _, value = line.decode(errors="replace").rstrip("\r").partition(":")
            if name:
                fields[name] = value.removeprefix(" ")
            elif not line.strip() and "data" in fields:
                last_id = fields.get("id", last_id)
                yield ServerEvent(last_id, fields["data"])
                fields = {}

    async def _soon(self, lines: AsyncIterator[bytes]) -> bytes | None:
        """Return the next line, None at the end. Raises ``NoAnswer`` after a long silence."""
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                return await anext(lines, None)
        except TimeoutError as error:
            raise self._unanswered(error) from None

    async def lines(self, method: str, path: str, query: Query) -> AsyncIterator[bytes]:
        """Yield the lines of an answer as they arrive, without their ends."""
        async with self._answer(method, self._url(path, query), None) as response:
            async for line in _lines_of(response):
                yield line

    @asynccontextmanager
    async def _answer(
        self,
        method: str,
        url: URL,
        body: bytes | AsyncIterator[bytes] | None,
        headers: Mapping[str, str] | None = None,
    ) -> AsyncIterator[ClientResponse]:
        try:
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status != 200:
                    text = await response.content.read(ERROR_BYTES)
                    raise ErrorAnswer(response.status, self._message(response.status, text))
                yield response
        except (ClientError, TimeoutError, OSError) as error:
            raise self._unanswered(error) from None

    def _url(self, path: str, query: Query | None) -> URL:
        return self._base.with_path(self._base.path.rstrip("/") + path).with_query(query or {})

    def _message(self, status: int, text: bytes) -> str:
        needs_token = status == 401 and "Authorization" not in self._session.headers
        hint = "; give the admin token with --token-file FILE" if needs_token else ""
        for error in as_list(read_object(text).get("errors")):
            if isinstance(error, dict) and error.get("message"):
                return " ".join(str(error["message"]).split()) + hint
        return f"the server answers with HTTP status {status}{hint}"

    def _unanswered(self, error: Exception) -> NoAnswer:
        number: int | None = None
        match error:
            case ClientConnectorCertificateError(certificate_error=ssl.SSLError() as problem):
                reason = (
                    f"its certificate is not trusted: {_ssl_reason(problem)}; if a private "
                    "authority signed it, name its certificate with --ca-file FILE"
                )
            case ClientConnectorSSLError(os_error=ssl.SSLError() as problem):
                reason = f"TLS fails: {_ssl_reason(problem)}"
            case ClientConnectorError():
                number = error.os_error.errno
                reason = os.strerror(number) if number and number > 0 else str(error.os_error)
            case TimeoutError():
                reason = "no answer in time"
            case _:
                reason = "the answer broke off"
        return NoAnswer(f"{self._where}: {reason}", number)


@asynccontextmanager
async def connected(
    connector: BaseConnector | None, base: URL, where: str, token: str | None = None
) -> AsyncIterator[Client]:
    """Open a client of the server at ``base``, which sends ``token`` with every request."""
    headers = {"Authorization": f"Bearer {token}"} if token is not None else {}
    timeout = ClientTimeout(total=None, connect=CONNECT_SECONDS)
    async with ClientSession(connector=connector, headers=headers, timeout=timeout) as session:
        yield Client(session, base, where)


async def _lines_of(response: ClientResponse) -> AsyncIterator[bytes]:
    begun: list[bytes] = []
    async for piece in response.content.iter_any():  # a line may exceed aiohttp's limit
        first, *others = piece.split(b"\n")
        begun.append(first)
        for other in others:
            yield b"".join(begun)
            begun = [other]
    if last := b"".join(begun):
        yield last


def _parsed(text: bytes) -> Document:
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise NoAnswer("the server's answer cannot be parsed; check that it is a Millpond")
    return Document(document)


def _ssl_reason(problem: ssl.SSLError) -> str:
    """Return why a certificate is refused, or OpenSSL's reason, as ``wrong version number``."""
    if isinstance(problem, ssl.SSLCertVerificationError) and problem.verify_message:
        return problem.verify_message
    return (problem.reason or str(problem)).replace("_", " ").lower()
