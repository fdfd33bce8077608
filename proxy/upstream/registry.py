"""What is fetched from one registry: manifests, blobs, tags (distribution-spec "Pull").

Absence and failure never share an error class: a failure told as absence makes clients believe
that an image or a signature does not exist.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from typing import Final, NamedTuple

import structlog
from aiohttp import ClientResponse
from yarl import URL

from proxy import manifests
from proxy.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    UpstreamFailure,
    UpstreamUnavailable,
)
from proxy.names import Digest, Repo, parse_digest
from proxy.records import Descriptor
from proxy.upstream.budget import Budget
from proxy.upstream.client import Client, Question

MAX_PAGES: Final = 100
MAX_TAGS_BODY: Final = 16 * 1024 * 1024
_MANIFEST: Final = {"Accept": manifests.ACCEPT}
_INDEX: Final = {"Accept": manifests.OCI_INDEX}
_ANY: Final = {"Accept": "*/*"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")

log = structlog.get_logger(__name__)


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
    """One configured registry. Its methods raise ``UpstreamFailure``, ``Denied`` or ``Absent``.

    ``downloads`` bodies at the most are open at once; manifests do not wait for them.
    """

    def __init__(self, client: Client, budget: Budget, *, resumes: int, downloads: int) -> None:
        self._client = client
        self.budget = budget
        self._resumes = resumes
        self._downloads = asyncio.Semaphore(downloads)

    def __repr__(self) -> str:
        return f"<Upstream {self._client.name}>"

    async def head_manifest(self, repo: Repo, ref: str) -> Descriptor | None:
        """Return what a tag or digest names; None when this registry's HEAD does not tell.

        Docker Hub does not count a HEAD as a pull.
        """
        response = await self._client.ask(
            Question("HEAD", repo, "manifests", ref, ManifestUnknown, _MANIFEST)
        )
        response.close()
        self.budget.note(response.headers)
        digest, media_type = _digest(response), _media_type(response)
        size = response.content_length
        if response.status == 405 or digest is None or size is None or not media_type:
            return None
        return Descriptor(media_type, digest, size)

    async def manifest(self, repo: Repo, ref: str) -> FetchedManifest:
        """Return a manifest. Raises ``ManifestTooLarge`` above 8 MiB."""
        response = await self._client.ask(
            Question("GET", repo, "manifests", ref, ManifestUnknown, _MANIFEST)
        )
        self.budget.note(response.headers)
        self._client.transport.counters.pulls_spent += 1
        body = await self._client.read(response, manifests.MAX_SIZE)
        if body is None:
            raise ManifestTooLarge(
                f"{self._client.name}: the manifest is larger than {manifests.MAX_SIZE} bytes"
            )
        return FetchedManifest(
            _media_type(response) or manifests.media_type(body), body, _digest(response)
        )

    async def blob_size(self, repo: Repo, digest: Digest) -> int | None:
        """Return a blob's size in bytes, None when upstream does not announce it."""
        response = await self._client.ask(
            Question("HEAD", repo, "blobs", digest, BlobUnknown, _ANY)
        )
        response.close()
        return None if response.status == 405 else response.content_length

    def blob(self, repo: Repo, digest: Digest) -> AbstractAsyncContextManager[Body]:
        """Open a blob's body, unverified; it is resumed where it breaks off."""
        return self._blob(repo, digest)

    @asynccontextmanager
    async def _blob(self, repo: Repo, digest: Digest) -> AsyncIterator[Body]:
        async with self._downloads:
            question = Question("GET", repo, "blobs", digest, BlobUnknown, _ANY)
            download = _Download(self._client, question, await self._client.ask(question))
            try:
                yield Body(download.size, download.chunks(self._resumes))
            finally:
                download.close()

    async def tags(self, repo: Repo, query: dict[str, str]) -> TagPage:
        """Return one page of tags; ``query`` may hold ``n`` and ``last``."""
        response = await self._client.ask(
            Question("GET", repo, "tags", "list", NameUnknown, _ANY, query)
        )
        link = response.links.get("next")
        further = None if link is None else str(link["url"])
        body = await self._client.read(response, MAX_TAGS_BODY)
        try:
            listed = json.loads(body or b"").get("tags") or []
        except (ValueError, AttributeError):
            raise UpstreamUnavailable(
                f"{self._client.name}: the tags list cannot be read"
            ) from None
        tags = [tag for tag in listed if isinstance(tag, str)]
        last = None if further is None else URL(further).query.get("last")
        return TagPage(tags, last or (tags[-1] if further is not None and tags else None))

    async def referrers(self, repo: Repo, subject: Digest) -> list[dict[str, object]] | None:
        """Return descriptors of what refers to ``subject``; None when the API is not there."""
        entries: list[dict[str, object]] = []
        query: dict[str, str] = {}
        for _ in range(MAX_PAGES):
            try:
                response = await self._client.ask(
                    Question("GET", repo, "referrers", subject, NameUnknown, _INDEX, query)
                )
            except NameUnknown:
                return None
            body = await self._client.read(response, manifests.MAX_SIZE)
            if _media_type(response) != manifests.OCI_INDEX or body is None:
                return None
            entries += manifests.referrers_of(body)
            link = response.links.get("next")
            if link is None:
                return entries
            query = dict(URL(str(link["url"])).query)
        raise UpstreamUnavailable(f"{self._client.name}: the list of referrers has no end")


class _Download:
    """One blob's body over as many answers as it takes."""

    def __init__(self, client: Client, question: Question, response: ClientResponse) -> None:
        self._client = client
        self._question = question
        self._response = response
        self._offset = 0
        self.size = response.content_length

    async def chunks(self, resumes: int) -> AsyncIterator[bytes]:
        """Yield the bytes; what breaks off goes on from the last good byte.

        A fresh request means a fresh redirect and a fresh token where those have expired. Gives up
        after ``resumes`` attempts without a byte of progress.
        """
        fruitless = 0
        while True:
            begun_at = self._offset
            try:
                async for chunk in self._client.transport.chunks(self._response):
                    self._offset += len(chunk)
                    yield chunk
            except UpstreamFailure as error:
                fruitless = 0 if self._offset > begun_at else fruitless + 1
                if self._offset == self.size or fruitless >= resumes:
                    raise
                await self._resume(error)
            else:
                return

    async def _resume(self, broken: UpstreamFailure) -> None:
        """Open the rest; a whole answer instead of the rest is read up to where we were.

        Raises ``broken`` when upstream has nothing more to give.
        """
        self._response.close()
        log.info("resuming", at=self._offset, ref=self._question.ref, reason=broken.message)
        headers = {**self._question.headers, "Range": f"bytes={self._offset}-"}
        try:
            self._response = await self._client.ask(replace(self._question, headers=headers))
        except RegistryError as error:
            raise broken from error
        begins_at = 0
        if self._response.status == 206:
            match = _CONTENT_RANGE.fullmatch(self._response.headers.get("Content-Range", ""))
            begins_at = -1 if match is None else int(match[1])
        if not 0 <= begins_at <= self._offset:
            raise broken
        await self._skip(self._offset - begins_at)

    async def _skip(self, count: int) -> None:
        while count > 0:
            with self._client.transport.translated():
                skipped = await self._response.content.read(count)
            if not skipped:
                raise UpstreamUnavailable(f"{self._client.name}: the body broke off again")
            self._client.transport.counters.bytes_from_upstream += len(skipped)
            count -= len(skipped)

    def close(self) -> None:
        """End the transfer."""
        self._response.close()


def _digest(response: ClientResponse) -> Digest | None:
    try:
        return parse_digest(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None


def _media_type(response: ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip()
