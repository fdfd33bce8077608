"""Serves content to other replicas. All other clients get 404.

A replica gets held and arriving content, and verifies it itself. The answer states whether the
repository contains it, so that the other side can protect private content too.
"""

import asyncio
from collections.abc import Mapping
from typing import Final, NamedTuple

import structlog
from aiohttp.web import BaseRequest, Response, StreamResponse

from proxy.content.content import Content
from proxy.content.downloads import Downloads, Reader
from proxy.core.errors import RegistryError, StorageError
from proxy.core.names import Digest, Target
from proxy.core.sources import Priority
from proxy.fleet.leases import Leases
from proxy.fleet.protocol import (
    CONTENT_HEADER,
    MANIFESTS,
    NOT_YET,
    PREFIX,
    ContentInfo,
    ContentRequest,
)
from proxy.fleet.signatures import HEADER, Signer
from proxy.repository.blobs import Blobs
from proxy.repository.manifests import Manifests
from proxy.repository.results import LocalBlob
from proxy.runtime.part_counters import FleetCounters
from proxy.web.in_flight import InFlight
from proxy.web.pacing import PacedResponse
from proxy.web.sendfile import ClientLeftError, Sending

MAX_TRANSFERS: Final = 64
WAIT_SECONDS: Final = 1.0
"""Seconds that a request waits for the registry's answer; then the replica asks again."""

_MISSING: Final = ContentInfo(None, is_public=False, is_confirmed=False)

log = structlog.get_logger(__name__)


class Served(NamedTuple):
    """The content that replicas may read."""

    content: Content
    downloads: Downloads
    manifests: Manifests
    blobs: Blobs


class PeerServer:
    """Answers replicas."""

    def __init__(
        self, signer: Signer, leases: Leases, served: Served, counters: FleetCounters
    ) -> None:
        self._signer = signer
        self._leases = leases
        self._content, self._downloads, self._manifests, self._blobs = served
        self._counters = counters
        self._transfers = 0
        self.in_flight: Final = InFlight()

    def admits(self, request: BaseRequest) -> bool:
        """Return True for a valid request of a replica, which cannot be repeated."""
        path, proof = request.raw_path, request.headers.get(HEADER)
        return (
            path.startswith(PREFIX)
            and request.method in ("GET", "HEAD")
            and self._signer.verify(request.method, path, proof)
        )

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer a request that is admitted."""
        answering = _Answering(self._signer, request, self.in_flight)
        try:
            wanted = ContentRequest.parse(request.raw_path)
        except RegistryError:
            wanted = None
        if wanted is None:
            return answering.refuse(404)
        if self._transfers >= MAX_TRANSFERS:
            return answering.refuse(NOT_YET)
        self._transfers += 1
        try:
            if wanted.kind == MANIFESTS:
                return await self._manifest(wanted, answering)
            return await self._blob(wanted, answering)
        finally:
            self._transfers -= 1
            self._counters.peer_bytes_sent += answering.sent

    async def _manifest(self, wanted: ContentRequest, answering: "_Answering") -> StreamResponse:
        """Answer with a manifest that this repository holds."""
        target, digest = wanted.target, wanted.digest
        hit = await self._manifests.held(target, digest, "")
        if hit is None:
            is_coming = wanted.live and self._leases.owns(target.upstream, digest)
            return answering.refuse(NOT_YET if is_coming else 404)
        is_public = await self._content.is_public(digest)
        info = ContentInfo(
            len(hit.body), is_public, is_confirmed=True, media_type=hit.descriptor.media_type
        )
        return answering.whole(info, hit.body)

    async def _blob(self, wanted: ContentRequest, answering: "_Answering") -> StreamResponse:
        target, digest = wanted.target, wanted.digest
        is_linked = await self._content.links.has(target, digest)
        held = await self._content.open(digest)
        if held is not None:
            is_public = await self._content.is_public(digest)
            info = ContentInfo(held.size, is_public, is_linked)
            local = LocalBlob(held)
            try:
                return await answering.body(info, local, wanted.offset)
            finally:
                held.close()
        reader = self._downloads.follow(target, digest) if wanted.live else None
        if reader is None and wanted.begin:
            reader = await self._begun(target, digest)
        if reader is None:
            return answering.refuse(404)
        try:
            return await self._arriving(wanted, reader, answering, is_linked=is_linked)
        finally:
            reader.close()

    async def _begun(self, target: Target, digest: Digest) -> Reader | None:
        """Return a reader of a new download, None if this replica has no space either."""
        try:
            return await self._blobs.begin(target, digest, Priority.DOWNLOAD)
        except RegistryError:
            return None

    async def _arriving(
        self, wanted: ContentRequest, reader: Reader, answering: "_Answering", *, is_linked: bool
    ) -> StreamResponse:
        download = reader.download
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await download.opened()
        except TimeoutError:
            return answering.refuse(NOT_YET)
        except (RegistryError, StorageError):
            return answering.refuse(404)
        is_confirmed = is_linked or download.target == wanted.target
        info = ContentInfo(download.size, download.is_public, is_confirmed)
        return await answering.body(info, reader, wanted.offset)


class _Answering:
    """One response to a replica. ``sent`` counts body bytes."""

    def __init__(self, signer: Signer, request: BaseRequest, in_flight: InFlight) -> None:
        self._signer = signer
        self._request = request
        self._in_flight = in_flight
        self.sent = 0

    def refuse(self, status: int) -> Response:
        """Return a response without content."""
        return PacedResponse(status=status, headers=self._headers(status, _MISSING))

    def whole(self, info: ContentInfo, body: bytes) -> Response:
        """Return a response from memory."""
        self.sent = len(body)
        return PacedResponse(body=body, headers=self._headers(200, info))

    async def body(
        self, info: ContentInfo, source: LocalBlob | Reader, offset: int
    ) -> StreamResponse:
        """Send a blob from ``offset`` on, as it arrives; hang up if it fails."""
        if info.size is not None and offset > info.size:
            return self.refuse(404)
        response = StreamResponse(headers=self._headers(200, info))
        if info.size is None:
            response.enable_chunked_encoding()
        else:
            response.content_length = info.size - offset
        with self._in_flight.transfer(self._request) as pace:
            sending = Sending(self._request, response, pace)
            try:
                await sending.begin()
                if self._request.method != "HEAD":
                    await sending.file(source, offset, info.size)
                await sending.finish()
            except (ClientLeftError, RegistryError, StorageError) as error:
                log.debug("a transfer to a replica broke off", reason=str(error))
                if self._request.transport is not None:
                    self._request.transport.close()
            finally:
                self.sent = sending.sent
        return response

    def _headers(self, status: int, info: ContentInfo) -> Mapping[str, str]:
        header = self._request.headers[HEADER]
        proof = self._signer.sign_response(header, status, info.header)
        return {
            HEADER: proof,
            CONTENT_HEADER: info.header,
            "Content-Type": "application/octet-stream",
        }
