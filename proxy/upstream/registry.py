"""What is fetched from one registry: manifests, blobs, tags (distribution-spec "Pull").

Absence and failure never share an error class: a failure told as absence makes clients believe
that an image or a signature does not exist.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Final, NamedTuple

from aiohttp import ClientResponse
from yarl import URL

from proxy import manifests
from proxy.errors import (
    Absent,
    BlobUnknown,
    Denied,
    DigestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameUnknown,
    TooManyRequests,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.names import Digest, Repo, parse_digest
from proxy.records import Descriptor
from proxy.upstream.auth import Authorizer
from proxy.upstream.transport import Transport, retry_after

MAX_TAGS_BODY: Final = 16 * 1024 * 1024


class FetchedManifest(NamedTuple):
    """A manifest as upstream sent it: not yet verified. ``digest`` is what upstream claims."""

    media_type: str
    body: bytes
    digest: Digest | None


class Body(NamedTuple):
    """A blob that arrives: its size in bytes if announced, and its bytes, not yet verified."""

    size: int | None
    chunks: AsyncIterator[bytes]


class TagPage(NamedTuple):
    """One page of a tags list; ``last`` is where the next page begins behind, None at the end."""

    tags: list[str]
    last: str | None


class Upstream:
    """One configured registry. Its methods raise ``UpstreamFailure``, ``Denied`` or ``Absent``."""

    def __init__(
        self, name: str, url: URL, transport: Transport, authorizer: Authorizer, answer: float
    ) -> None:
        self._name = name
        self._url = url
        self._transport = transport
        self._authorizer = authorizer
        self._answer_seconds = answer

    def __repr__(self) -> str:
        return f"<Upstream {self._name} at {self._url}>"

    async def head_manifest(self, repo: Repo, ref: str) -> Descriptor | None:
        """Return what a tag or digest names; None when this registry's HEAD does not tell.

        Docker Hub does not count a HEAD as a pull.
        """
        response = await self._open("HEAD", repo, f"manifests/{ref}", ManifestUnknown)
        response.close()
        digest, media_type = _digest(response), _media_type(response)
        size = response.content_length
        if response.status == 405 or digest is None or size is None or not media_type:
            return None
        return Descriptor(media_type, digest, size)

    async def manifest(self, repo: Repo, ref: str) -> FetchedManifest:
        """Return a manifest. Raises ``ManifestTooLarge`` above 8 MiB."""
        response = await self._open("GET", repo, f"manifests/{ref}", ManifestUnknown)
        async with response:
            body = await self._read(response, manifests.MAX_SIZE)
            if body is None:
                raise ManifestTooLarge(
                    f"{self._name}: the manifest is larger than {manifests.MAX_SIZE} bytes"
                )
        return FetchedManifest(
            _media_type(response) or manifests.media_type(body), body, _digest(response)
        )

    async def blob_size(self, repo: Repo, digest: Digest) -> int | None:
        """Return a blob's size in bytes, None when upstream does not announce it."""
        response = await self._open("HEAD", repo, f"blobs/{digest}", BlobUnknown)
        response.close()
        return response.content_length

    def blob(self, repo: Repo, digest: Digest) -> AbstractAsyncContextManager[Body]:
        """Open a blob's body, unverified."""
        return self._blob(repo, digest)

    @asynccontextmanager
    async def _blob(self, repo: Repo, digest: Digest) -> AsyncIterator[Body]:
        response = await self._open("GET", repo, f"blobs/{digest}", BlobUnknown)
        try:
            yield Body(response.content_length, self._transport.chunks(response))
        finally:
            response.close()

    async def tags(self, repo: Repo, query: dict[str, str]) -> TagPage:
        """Return one page of tags; ``query`` may hold ``n`` and ``last``."""
        response = await self._open("GET", repo, "tags/list", NameUnknown, query)
        async with response:
            body = await self._read(response, MAX_TAGS_BODY)
            link = response.links.get("next")
            further = None if link is None else str(link["url"])
        try:
            listed = json.loads(body or b"").get("tags") or []
        except (ValueError, AttributeError):
            raise UpstreamUnavailable(f"{self._name}: the tags list cannot be read") from None
        tags = [tag for tag in listed if isinstance(tag, str)]
        last = None if further is None else URL(further).query.get("last")
        return TagPage(tags, last or (tags[-1] if further is not None and tags else None))

    async def _open(
        self,
        method: str,
        repo: Repo,
        path: str,
        absent: type[Absent],
        query: dict[str, str] | None = None,
    ) -> ClientResponse:
        """Return a good answer, within the time that one may take; errors are raised."""
        url = (self._url / "v2" / repo).joinpath(path, encoded=True).with_query(query or {})
        headers = {"Accept": manifests.ACCEPT if path.startswith("manifests/") else "*/*"}
        try:
            async with asyncio.timeout(self._answer_seconds):
                response = await self._authorized(method, url, headers, repo)
                if response.status in (200, 206) or (method == "HEAD" and response.status == 405):
                    return response
                raise await self._failure(response, absent)
        except TimeoutError:
            raise UpstreamTimeout(f"{self._name} does not answer in time") from None

    async def _authorized(
        self, method: str, url: URL, headers: dict[str, str], repo: Repo
    ) -> ClientResponse:
        """Send, and answer a challenge once. A refused token is renewed from a fresh challenge."""
        scope = f"repository:{repo}:pull"
        sent = await self._authorizer.header(scope)
        response = await self._transport.send(method, url, headers, sent)
        if response.status == 401 and sent is not None:
            await self._authorizer.forget(scope)
            if "insufficient_scope" in response.headers.get("WWW-Authenticate", ""):
                return response
            await self._transport.drain(response)
            response = await self._transport.send(method, url, headers, None)
        if response.status != 401:
            return response
        challenges = response.headers.getall("WWW-Authenticate", [])
        await self._transport.drain(response)
        if not challenges:
            challenges = await self._ping()
        answer = await self._authorizer.learn(challenges, scope)
        return await self._transport.send(method, url, headers, answer)

    async def _ping(self) -> list[str]:
        """Return the challenge of the base end-point: some registries send it only there."""
        response = await self._transport.send("GET", self._url / "v2" / "", {}, None)
        await self._transport.drain(response)
        return response.headers.getall("WWW-Authenticate", [])

    async def _read(self, response: ClientResponse, limit: int) -> bytes | None:
        """Return a whole body, None when it is larger than ``limit`` bytes."""
        body = bytearray()
        async for chunk in self._transport.chunks(response):
            body += chunk
            if len(body) > limit:
                return None
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise UpstreamUnavailable(f"{self._name} encodes what was asked for as it is")
        return bytes(body)

    async def _failure(self, response: ClientResponse, absent: type[Absent]) -> Exception:
        """Return the error that an answer other than 200 means."""
        body = await self._transport.drain(response)
        said = f"{self._name} answers {response.status}{_reason(body)}"
        match response.status:
            case 401:
                return await self._authorizer.refused()
            case 403:
                return Denied(said)
            case 404:
                return absent(said)
            case 429:
                return TooManyRequests(said, retry_after=retry_after(response))
            case _:
                return UpstreamUnavailable(said, retry_after=retry_after(response))


def _digest(response: ClientResponse) -> Digest | None:
    try:
        return parse_digest(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None


def _media_type(response: ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()


def _reason(body: bytes) -> str:
    """Return the message of an error document, shortened, or nothing."""
    try:
        message = json.loads(body)["errors"][0]["message"]
    except (ValueError, LookupError, TypeError):
        return ""
    printable = "".join(c for c in str(message)[:200] if c.isprintable())
    return f": {printable}" if printable else ""
