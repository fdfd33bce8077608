"""Asks one registry: authorized, patiently, within the time that a client would wait.

``registry`` says what to fetch; here it is asked until there is a good answer or an error.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Final, NamedTuple, TypeVar

from aiohttp import ClientResponse
from yarl import URL

from proxy.core.errors import (
    Denied,
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
from proxy.upstream.circuit_breaker import Patience
from proxy.upstream.headers import retry_after
from proxy.upstream.transport import READ_BUFFER, SMALL_BUFFER, Transport

LARGE: Final = 512 * 1024
"""Bytes. Of answers that are read whole, longer ones are rare, and a few are read at a time."""

MAX_LARGE: Final = 4
"""Their number for each upstream, so that a hostile one cannot fill the memory with them."""

MAX_MESSAGE: Final = 4096
MAX_SHOWN: Final = 200
"""Characters of an upstream's error message."""

_NO_HEAD: Final = (405, 501)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class UpstreamRequest:
    """One request: ``kind`` is the end-point (manifests, blobs, tags, referrers).

    A *spare* one can be done without: it is asked once, and its failure says nothing of upstream.
    """

    method: str
    repo: Repo
    kind: str
    ref: str
    absent: type[NotFound]
    headers: dict[str, str] = field(default_factory=dict)
    query: dict[str, str] = field(default_factory=dict)
    is_spare: bool = False

    @property
    def limit(self) -> str:
        """What a rate limit of this request would hold for."""
        return f"{self.method} {self.kind}{' to spare' if self.is_spare else ''}"

    @property
    def buffer(self) -> int:
        """How many bytes of the answer aiohttp may read ahead, about twice over."""
        return READ_BUFFER if self.kind == "blobs" else SMALL_BUFFER

    @property
    def item(self) -> str:
        """What is asked for."""
        return f"{self.repo} {self.kind} {self.ref}"


class Answer(NamedTuple):
    """An answer that has been read: its headers are in ``response``."""

    response: ClientResponse
    body: bytes | None


class Client:
    """One registry as it wants to be asked."""

    def __init__(
        self,
        url: URL,
        transport: Transport,
        *,
        authorizer: Authorizer,
        patience: Patience,
        answer: float,
    ) -> None:
        self.name = transport.name
        self.transport = transport
        self.patience = patience
        self._url = url
        self._authorizer = authorizer
        self.answer_seconds = answer
        self._large = asyncio.Semaphore(MAX_LARGE)

    @property
    def host(self) -> str:
        """The registry's host."""
        return self._url.host or ""

    async def ask(self, question: UpstreamRequest) -> ClientResponse:
        """Return a good answer; its caller reads or closes it.

        Good is 200, 206, and to a HEAD also 405 and 501: no such method.

        Raises ``UpstreamFailure``, ``Denied``, or the question's ``absent``.
        """
        return await self._patiently(question, lambda: self._once(question))

    async def read(self, question: UpstreamRequest, limit: int) -> Answer:
        """Return a good answer with its whole body, None when that is larger than ``limit`` bytes.

        Raises as ``ask`` does.
        """

        async def read_once() -> Answer:
            response = await self._once(question)
            body = bytearray()
            async with AsyncExitStack() as stack:
                stack.callback(response.close)
                is_large = False
                async for chunk in self.transport.chunks(response):
                    body += chunk
                    if len(body) > limit:
                        return Answer(response, None)
                    if len(body) > LARGE and not is_large:
                        is_large = True
                        await stack.enter_async_context(self._large)
            return Answer(response, bytes(body))

        return await self._patiently(question, read_once)

    async def _patiently(
        self, question: UpstreamRequest, attempt: Callable[[], Awaitable[Result]]
    ) -> Result:
        """Try until there is a result, within the time that a client waits."""
        try:
            async with asyncio.timeout(self.answer_seconds):
                return await self._until_answered(question, attempt)
        except TimeoutError:
            error = UpstreamTimeout(f"{self.name} does not answer in time")
            self._failed(question, error)
            raise error from None

    async def _until_answered(
        self, question: UpstreamRequest, attempt: Callable[[], Awaitable[Result]]
    ) -> Result:
        failures = 0
        self.patience.admit(question.limit, question.item)
        while True:
            try:
                result = await attempt()
            except RegistryError as error:
                error.was_forwarded = True
                error.message = self.transport.redactor.clean_message(error.message)
                error.args = (error.message,)
                failures += 1
                wait = self.patience.wait_before(failures, error)
                if question.is_spare or wait is None or wait > self.answer_seconds / 2:
                    self._failed(question, error)
                    raise
                await asyncio.sleep(wait)
            else:
                self.patience.answered(question.item)
                return result

    def _failed(self, question: UpstreamRequest, error: RegistryError) -> None:
        if not question.is_spare or isinstance(error, TooManyRequests):
            self.patience.failed(question.limit, question.item, error)

    async def _once(self, question: UpstreamRequest) -> ClientResponse:
        url = self._url / "v2" / question.repo / question.kind
        url = url.joinpath(question.ref, encoded=True).with_query(question.query)
        response = await self._authorized(question, url)
        good = _NO_HEAD if question.method == "HEAD" else ()
        if response.status not in (200, 206, *good):
            raise await self._failure(response, question.absent)
        if response.headers.get("Content-Encoding", "identity") != "identity":
            response.close()
            raise UpstreamRejected(f"{self.name} encodes what was asked for as it is")
        return response

    async def _authorized(self, question: UpstreamRequest, url: URL) -> ClientResponse:
        """Send, and answer a challenge once. A refused token is renewed from a fresh challenge."""
        method, headers, buffer = question.method, question.headers, question.buffer
        scope = f"repository:{question.repo}:pull"
        sent = await self._authorizer.header(scope)
        response = await self.transport.send(method, url, headers, sent, buffer=buffer)
        stale = response.status == 401 or (
            response.status == 403 and (sent or "").startswith("Bearer ")  # ghcr's way
        )
        if stale and sent is not None and self.is_own(response):
            await self._authorizer.forget(scope)
            refusals = response.headers.getall("WWW-Authenticate", [])
            if any("insufficient_scope" in refusal for refusal in refusals):
                return response
            await self.transport.drain(response)
            response = await self.transport.send(method, url, headers, None, buffer=buffer)
        if response.status != 401 or not self.is_own(response):
            return response
        challenges = response.headers.getall("WWW-Authenticate", [])
        await self.transport.drain(response)
        if not challenges:
            challenges = await self._ping()
        answer = await self._authorizer.learn(challenges, scope)
        return await self.transport.send(method, url, headers, answer, buffer=buffer)

    def is_own(self, response: ClientResponse) -> bool:
        """Tell the registry's answers from those of hosts that it redirected us to."""
        return response.url.origin() == self._url.origin()

    async def _ping(self) -> list[str]:
        """Return the challenge of the base end-point: some registries send it only there."""
        response = await self.transport.send("GET", self._url / "v2" / "", {}, None)
        await self.transport.drain(response)
        return response.headers.getall("WWW-Authenticate", [])

    async def _failure(self, response: ClientResponse, absent: type[NotFound]) -> RegistryError:
        """Return the error that an answer other than 200 means."""
        error = await self._meaning(response, absent)
        error.upstream_status, error.host = response.status, response.url.host
        return error

    async def _meaning(self, response: ClientResponse, absent: type[NotFound]) -> RegistryError:
        body = await self.transport.drain(response)
        said = f"{self.name} answers {response.status}{self._reason(body)}"
        match response.status:
            case 401 if self.is_own(response):
                return await self._authorizer.refused()
            case 403 if self.is_own(response):
                return Denied(said)
            case 404:
                return absent(said)
            case 429:
                return TooManyRequests(said, retry_after=retry_after(response.headers))
            case status if 400 <= status < 500 and status not in (401, 403, 408):
                return UpstreamRejected(said)
            case _:  # 401 and 403 from elsewhere mean a signed address that has expired
                return UpstreamUnavailable(
                    said, retry_after=retry_after(response.headers), is_answer=True
                )

    def _reason(self, body: bytes) -> str:
        """Return the message of an error document, shortened, or nothing.

        One of absurd length is left out, because a secret that is cut cannot be found.
        """
        errors = as_list(read_object(body).get("errors"))
        message = errors[0].get("message", "") if errors and isinstance(errors[0], dict) else ""
        if not isinstance(message, str) or len(message) > MAX_MESSAGE:
            return ""
        printable = "".join(c for c in message if c.isprintable())
        shown = self.transport.redactor.clean(printable)[:MAX_SHOWN]
        return f": {shown}" if shown else ""
