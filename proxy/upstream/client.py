"""Sends requests to one registry until there is a good response or an error.

Limits each request to the time that a client waits, repeats temporary failures, and maps every
other status to its error class. ``registry`` builds the requests.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from aiohttp import ClientResponse

from proxy.core.errors import (
    Denied,
    LoopDetected,
    NotFound,
    RegistryError,
    TooManyRequests,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.core.names import Repo
from proxy.core.tolerant_json import as_list, read_object
from proxy.upstream.auth import Authorizer
from proxy.upstream.circuit_breaker import CircuitBreaker
from proxy.upstream.direct import READ_BUFFER
from proxy.upstream.headers import retry_after
from proxy.upstream.transport import SMALL_BUFFER, HTTPRequest, Transport

LARGE: Final = 512 * 1024
"""Bytes. Bodies that are read completely are rarely longer."""

MAX_LARGE: Final = 4
"""Maximum number of large bodies in memory at a time, in case of a hostile registry."""

MAX_MESSAGE: Final = 4096
MAX_SHOWN: Final = 200
"""Maximum length of an upstream's message in characters."""

_NO_HEAD: Final = (405, 501)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request. ``kind`` is the end-point: manifests, blobs, tags, referrers.

    The list of repositories has ``CATALOG`` for a repository, and no kind and reference.

    ``not_found`` is the error for a 404. An ``is_optional`` request is sent once, and its failure
    does not count against the upstream, unless it is a 429.
    """

    method: str
    repo: Repo
    kind: str
    ref: str
    not_found: type[NotFound]
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    is_optional: bool = False

    @property
    def rate_limit_key(self) -> str:
        """The kind of requests to which a 429 to this one applies."""
        return f"{self.method} {self.kind}{' optional' if self.is_optional else ''}"

    @property
    def item(self) -> str:
        """The requested object."""
        return f"{self.repo} {self.kind} {self.ref}"


class WholeResponse(NamedTuple):
    """A response whose body has been read; None if it exceeded the limit."""

    response: ClientResponse
    body: bytes | None


class Client:
    """Sends requests over ``transport``. ``answer_seconds`` bounds the wait for a response."""

    def __init__(
        self,
        transport: Transport,
        authorizer: Authorizer,
        circuit_breaker: CircuitBreaker,
        answer_seconds: float,
    ) -> None:
        self.name: Final = transport.name
        self.transport: Final = transport
        self.circuit_breaker: Final = circuit_breaker
        self.credentials: Final = authorizer.credentials
        self.answer_seconds: Final = answer_seconds
        self._authorizer = authorizer
        self._large = asyncio.Semaphore(MAX_LARGE)

    async def send(self, request: UpstreamRequest) -> ClientResponse:
        """Return a good response; the caller reads or closes it.

        Good is 200, 206, and for a HEAD also 405 and 501, which mean that HEAD is not supported.

        Raises ``UpstreamFailure``, ``Denied`` or the request's ``not_found``.
        """
        return await self._retry(request, lambda: self._send_once(request))

    async def log_in(self) -> None:
        """Ping the registry with our login, as ``docker login`` does.

        Raises ``Denied`` if it is rejected, ``UpstreamFailure`` if the result is unknown.
        """
        async with asyncio.timeout(self.answer_seconds):
            ping = HTTPRequest("GET", self.transport.url / "v2" / "")
            response = await self._authorizer.send(ping)
            await self.transport.drain(response)
        if response.status in (401, 403):
            raise await self._authorizer.refusal("")
        if response.status != 200:
            raise UpstreamUnavailable(f"{self.name} answers {response.status} to a login")

    async def forget_token(self, repo: Repo) -> None:
        """Drop the token for a repository, so that the token server decides again."""
        await self._authorizer.forget_token(repo)

    async def read(self, request: UpstreamRequest, limit: int) -> WholeResponse:
        """Return a good response with its body of at most ``limit`` bytes. Raises as ``send``."""

        async def read_once() -> WholeResponse:
            response = await self._send_once(request)
            body = bytearray()
            is_large = False
            async with AsyncExitStack() as stack:
                stack.callback(response.close)
                while chunk := await self.transport.read(response, SMALL_BUFFER):
                    body += chunk
                    if len(body) > limit:
                        return WholeResponse(response, None)
                    if len(body) > LARGE and not is_large:
                        is_large = True
                        await stack.enter_async_context(self._large)
            return WholeResponse(response, bytes(body))

        return await self._retry(request, read_once)

    async def _retry(
        self, request: UpstreamRequest, attempt: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Return the result of the first attempt that succeeds within ``answer_seconds``."""
        self.circuit_breaker.admit(self._rate_limit_key(request), request.item)
        try:
            async with asyncio.timeout(self.answer_seconds):
                return await self._attempts(request, attempt)
        except TimeoutError:
            error = UpstreamTimeout(f"{self.name} does not answer in time")
            self._record_failure(request, error)
            raise error from None

    async def _attempts(
        self, request: UpstreamRequest, attempt: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Return the result of the first attempt that succeeds; raise the error of the last one.

        A delay of more than half the time limit would leave too little for the attempt after it,
        so the client gets the error at once, with its ``Retry-After``.
        """
        failures = 0
        while True:
            try:
                result = await attempt()
            except RegistryError as error:
                error.was_forwarded = True
                error.message = self.transport.redactor.redact_message(error.message)
                error.args = (error.message,)
                failures += 1
                delay = self.circuit_breaker.retry_delay(failures, error)
                if request.is_optional or delay is None or delay > self.answer_seconds / 2:
                    self._record_failure(request, error)
                    raise
                await asyncio.sleep(delay)
            else:
                self.circuit_breaker.record_answer(request.item)
                return result

    def _record_failure(self, request: UpstreamRequest, error: RegistryError) -> None:
        if not request.is_optional or isinstance(error, TooManyRequests):
            key = self._rate_limit_key(request)
            self.circuit_breaker.record_failure(key, request.item, error)

    def _rate_limit_key(self, request: UpstreamRequest) -> str:
        """Return the scope of a 429: one kind of requests of one client."""
        return f"{self._authorizer.identity} {request.rate_limit_key}"

    async def _send_once(self, request: UpstreamRequest) -> ClientResponse:
        url = self.transport.url / "v2" / request.repo
        if request.kind:
            url = (url / request.kind).joinpath(request.ref, encoded=True)
        url = url.with_query(request.query)
        buffer = READ_BUFFER if request.kind == "blobs" else SMALL_BUFFER
        response = await self._authorizer.send(
            HTTPRequest(request.method, url, request.headers, buffer), request.repo
        )
        good = (200, 206, *_NO_HEAD) if request.method == "HEAD" else (200, 206)
        if response.status not in good:
            error = await self._error(response, request)
            error.upstream_status, error.host = response.status, response.url.host
            raise error
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise UpstreamRejected(f"{self.name} sends an encoded response that was not requested")
        return response

    async def _error(self, response: ClientResponse, request: UpstreamRequest) -> RegistryError:
        """Return the error for a status that is not good.

        Absence and failure never share a class: a failure reported as 404 would make clients
        believe that an image or a signature does not exist. A 401 or 403 from a host that the
        registry redirected to is a failure: usually a signed URL that has expired.
        """
        reason = self._reason(await self.transport.drain(response))
        text = f"{self.name} answers {response.status}{reason}"
        is_own = self.transport.is_own(response)
        match response.status:
            case 401 if is_own:
                return await self._authorizer.refusal(request.repo)
            case 403 if is_own:
                return Denied(text)
            case 404:
                return request.not_found(text)
            case 429:
                return TooManyRequests(text, retry_after=retry_after(response.headers))
            case 508:
                return LoopDetected(text)
            case status if 400 <= status < 500 and status not in (401, 403, 408):
                return UpstreamRejected(text)
            case _:
                wait = retry_after(response.headers)
                return UpstreamUnavailable(text, retry_after=wait, is_answer=True)

    def _reason(self, body: bytes) -> str:
        """Return the message of an error document, redacted and shortened, or an empty string.

        A message beyond ``MAX_MESSAGE`` is dropped: cut off, it could end in a part of a secret,
        which the redactor does not recognize.
        """
        errors = as_list(read_object(body).get("errors"))
        message = errors[0].get("message", "") if errors and isinstance(errors[0], dict) else ""
        if not isinstance(message, str) or len(message) > MAX_MESSAGE:
            return ""
        printable = "".join(c for c in message if c.isprintable())
        shown = self.transport.redactor.redact(printable)[:MAX_SHOWN]
        return f": {shown}" if shown else ""
