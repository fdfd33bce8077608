"""Requests content from other replicas by HTTP. Their bytes are verified like those of any source.

Timeouts are short: a hanging replica must not delay a request for longer than a registry would.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector
from yarl import URL

from proxy.core.errors import BlobUnknown, UpstreamUnavailable
from proxy.core.manifests import MAX_SIZE
from proxy.core.names import matches, sha256
from proxy.core.sources import Piece, Place, SharedManifest, WrongBytes
from proxy.fleet.protocol import ADDRESS, CONTENT_HEADER, NOT_YET, ContentInfo, ContentRequest
from proxy.fleet.signatures import HEADER, Signer
from proxy.runtime.executors import in_thread_if_large
from proxy.runtime.part_counters import FleetCounters

CONNECT_SECONDS: Final = 0.5
ANSWER_SECONDS: Final = 2.0
STALL_SECONDS: Final = 3.0
"""Longest pause between two pieces of a body."""

SKIP_SECONDS: Final = 3.0
"""Time after a failure in which a replica gets no request that others may answer too."""

CONNECTIONS: Final = 64
_BUFFER: Final = 256 * 1024
_ERRORS: Final = (ClientError, TimeoutError, OSError)


class NotYet(UpstreamUnavailable):
    """The replica fetches the content, but has no bytes yet."""


class Peers:
    """The client of all other replicas."""

    def __init__(self, signer: Signer, counters: FleetCounters) -> None:
        self._signer = signer
        self._counters = counters
        self._skipped: dict[str, float] = {}
        self.on_wrong: Final[list[WrongBytes]] = []
        """Called with manifests whose bytes were wrong; readers of blobs verify them."""
        self._session = ClientSession(
            connector=TCPConnector(limit=CONNECTIONS),
            timeout=ClientTimeout(None, sock_connect=CONNECT_SECONDS, sock_read=STALL_SECONDS),
            auto_decompress=False,
            read_bufsize=_BUFFER,
            headers={"Accept-Encoding": "identity", "User-Agent": "millpond"},
        )

    def is_skipped(self, address: str) -> bool:
        """Return True if a replica has failed just now."""
        return time.monotonic() < self._skipped.get(address, 0.0)

    async def open(self, address: str, wanted: ContentRequest) -> "PeerBody":
        """Return a body. Raises ``BlobUnknown``, ``NotYet`` or ``UpstreamUnavailable``."""
        response, info = await self._send("GET", address, wanted)
        return PeerBody(response, info, wanted.offset, self._counters)

    async def head(self, address: str, wanted: ContentRequest) -> ContentInfo:
        """Return a replica's facts about content. Raises as ``open``."""
        response, info = await self._send("HEAD", address, wanted)
        response.close()
        return info

    async def manifest(self, address: str, wanted: ContentRequest) -> SharedManifest | None:
        """Return a manifest, None for one that does not match its digest. Raises as ``open``.

        Only a manifest that is confirmed for the repository: its links depend on it.
        """
        response, info = await self._send("GET", address, wanted)
        async with _closing(response):
            if info.size is None or info.size > MAX_SIZE or not info.is_confirmed:
                return None
            try:
                body = await response.content.readexactly(info.size)
            except (*_ERRORS, EOFError) as error:
                raise self._failed(address, error) from error
        if not await in_thread_if_large(len(body), lambda: matches(wanted.digest, body)):
            for listener in self.on_wrong:
                listener(wanted.target, wanted.digest, sha256(body))
            return None
        self._counters.peer_bytes += len(body)
        return SharedManifest(body, info.media_type, info.is_public, Place.PEER)

    async def close(self) -> None:
        """Close all connections."""
        await self._session.close()

    async def _send(
        self, method: str, address: str, wanted: ContentRequest
    ) -> tuple[ClientResponse, ContentInfo]:
        """Return a response with its facts, once the replica has authenticated itself."""
        if not ADDRESS.fullmatch(address):
            raise UpstreamUnavailable("Redis names no address of a replica")
        path = wanted.path
        proof = self._signer.sign(method, address, path)
        url = URL(address + path, encoded=True)
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                response = await self._session.request(
                    method, url, headers={HEADER: proof}, allow_redirects=False
                )
        except (*_ERRORS, ValueError) as error:
            raise self._failed(address, error) from error
        said = response.headers.get(CONTENT_HEADER, "")
        info = ContentInfo.parse(response.headers)
        if not self._signer.verify_response(
            proof, response.headers.get(HEADER), response.status, said
        ):
            response.close()
            raise UpstreamUnavailable("another replica does not prove itself")
        if response.status == 200 and info is not None:
            self._skipped.pop(address, None)
            return response, info
        response.close()
        if response.status == NOT_YET:
            raise NotYet("another replica has no byte yet")
        raise BlobUnknown(f"{wanted.target}@{wanted.digest}: another replica does not have it")

    def _failed(self, address: str, error: BaseException) -> UpstreamUnavailable:
        self._skipped[address] = time.monotonic() + SKIP_SECONDS
        self._counters.peer_failures += 1
        return UpstreamUnavailable(f"another replica failed: {type(error).__name__}")


class PeerBody:
    """One blob from a replica, from an offset on, in order."""

    def __init__(
        self, response: ClientResponse, info: ContentInfo, offset: int, counters: FleetCounters
    ) -> None:
        self.size = info.size
        self.is_public = info.is_public
        self.is_confirmed = info.is_confirmed
        self._response = response
        self._offset = offset
        self._counters = counters

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the bytes. Raises ``UpstreamUnavailable`` when the replica breaks off."""
        offset = self._offset
        try:
            while data := await self._response.content.readany():
                yield Piece(offset, data)
                offset += len(data)
                self._counters.peer_bytes += len(data)
        except _ERRORS as error:
            raise UpstreamUnavailable(
                f"another replica broke off: {type(error).__name__}"
            ) from error
        if self.size is not None and offset != self.size:
            raise UpstreamUnavailable("another replica broke off")

    async def aclose(self) -> None:
        """End the transfer."""
        self._response.close()


@asynccontextmanager
async def _closing(response: ClientResponse) -> AsyncIterator[None]:
    try:
        yield
    finally:
        response.close()
