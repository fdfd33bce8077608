"""What is fetched from one registry: manifests, blobs, tags (distribution-spec "Pull").

Absence and failure never share an error class: a failure told as absence makes clients believe
that an image or a signature does not exist.
"""

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import Final, NamedTuple

import structlog
from aiohttp import ClientResponse
from yarl import URL

from proxy import manifests
from proxy.documents import as_list, read_object
from proxy.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameUnknown,
    RegistryError,
    TooManyRequests,
    UpstreamFailure,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.names import Digest, Repo, parse_digest
from proxy.records import Descriptor
from proxy.upstream.budget import Budget
from proxy.upstream.client import Client, Question

RESUME_PAUSE: Final = 0.5
MAX_RESUME_PAUSE: Final = 10.0
MAX_PAGES: Final = 100
PAGE_KEYS: Final = ("n", "last", "next_page", "orderby", "artifactType")
"""What pages are called: the specification's names, Quay's and Azure's."""

MAX_TAGS_BODY: Final = 16 * 1024 * 1024
_MANIFEST: Final = {"Accept": manifests.ACCEPT}
_INDEX: Final = {"Accept": manifests.OCI_INDEX}
_ANY: Final = {"Accept": "*/*"}
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)", re.ASCII)

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
    """One page of a tags list, and the query of the next page; empty at the end."""

    tags: list[str]
    further: dict[str, str]


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
        if response.status >= 400 or digest is None or not size or not media_type:
            return None
        return Descriptor(media_type, digest, size)

    async def manifest(self, repo: Repo, ref: str) -> FetchedManifest:
        """Return a manifest. Raises ``ManifestTooLarge`` above 8 MiB."""
        response, body = await self._client.read(
            Question("GET", repo, "manifests", ref, ManifestUnknown, _MANIFEST),
            manifests.MAX_SIZE,
        )
        self.budget.note(response.headers)
        self._client.transport.counters.pulls_spent += 1
        if body is None:
            raise ManifestTooLarge(
                f"{self._client.name}: the manifest is larger than {manifests.MAX_SIZE} bytes"
            )
        return FetchedManifest(
            manifests.own_type(body) or _media_type(response) or manifests.implied_type(body),
            body,
            _digest(response),
        )

    async def blob_size(self, repo: Repo, digest: Digest) -> int | None:
        """Return a blob's size in bytes, None when upstream does not announce it."""
        response = await self._client.ask(
            Question("HEAD", repo, "blobs", digest, BlobUnknown, _ANY)
        )
        response.close()
        if response.status < 400:
            return response.content_length
        async with self.blob(repo, digest, queued=False) as body:
            return body.size

    @asynccontextmanager
    async def blob(self, repo: Repo, digest: Digest, *, queued: bool) -> AsyncIterator[Body]:
        """Open a blob's body, unverified; it is resumed where it breaks off.

        ``queued`` bodies wait for one another; those that a slow client may hold up must not be.
        """
        async with self._slot() if queued else nullcontext():
            question = Question("GET", repo, "blobs", digest, BlobUnknown, _ANY)
            download = _Download(self._client, question, await self._client.ask(question))
            try:
                yield Body(download.size, download.chunks(self._resumes))
            finally:
                download.close()

    @asynccontextmanager
    async def _slot(self) -> AsyncIterator[None]:
        """Wait for one of the downloads, but not for longer than a client would."""
        try:
            async with asyncio.timeout(self._client.answer_seconds):
                await self._downloads.acquire()
        except TimeoutError:
            raise UpstreamTimeout(f"{self._client.name}: too many downloads at once") from None
        try:
            yield
        finally:
            self._downloads.release()

    async def tags(self, repo: Repo, query: dict[str, str]) -> TagPage:
        """Return one page of tags; ``query`` may hold ``n`` and ``last``."""
        response, body = await self._client.read(
            Question("GET", repo, "tags", "list", NameUnknown, _ANY, query), MAX_TAGS_BODY
        )
        further = self._next_page(response)
        document = read_object(body or b"")
        if not isinstance(document.get("tags", False), list | None):  # some say null for none
            raise UpstreamUnavailable(f"{self._client.name}: the tags list cannot be read")
        tags = [tag for tag in as_list(document["tags"]) if isinstance(tag, str)]
        return TagPage(tags, further)

    async def referrers(self, repo: Repo, subject: Digest) -> list[dict[str, object]] | None:
        """Return descriptors of what refers to ``subject``; None when the API is not there."""
        entries: list[dict[str, object]] = []
        query: dict[str, str] = {}
        for page in range(MAX_PAGES):
            try:
                response, body = await self._client.read(
                    Question("GET", repo, "referrers", subject, NameUnknown, _INDEX, query),
                    manifests.MAX_SIZE,
                )
            except (NameUnknown, UpstreamRejected):
                if page == 0:
                    return None
                raise UpstreamUnavailable(
                    f"{self._client.name}: the list of referrers breaks off"
                ) from None
            if page == 0 and _media_type(response) != manifests.OCI_INDEX:
                return None
            if body is None or not manifests.is_index(body):
                raise UpstreamUnavailable(
                    f"{self._client.name}: the list of referrers cannot be read"
                )
            entries += manifests.referrers_of(body)
            query = self._next_page(response)
            if not query:
                return entries
        raise UpstreamUnavailable(f"{self._client.name}: the list of referrers has no end")

    def _next_page(self, response: ClientResponse) -> dict[str, str]:
        """Return the query of the page that ``Link`` leads to, empty when there is none.

        Raises ``UpstreamUnavailable`` for a ``Link`` that cannot be followed.
        """
        with self._client.transport.translated():
            link = response.links.get("next")
            if link is None:
                return {}
            query = URL(str(link["url"])).query
        page = {name: value for name, value in query.items() if name in PAGE_KEYS}
        if not page.keys() & {"last", "next_page"}:
            raise UpstreamUnavailable(f"{self._client.name}: its pages cannot be followed")
        return page


class _BrokenForGoodError(Exception):
    """A body cannot be resumed."""


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
        broken: UpstreamFailure | None = None
        while True:
            begun_at = self._offset
            try:
                if broken is not None:
                    await self._resume(broken)
                async for chunk in self._client.transport.chunks(self._response):
                    self._offset += len(chunk)
                    yield chunk
            except _BrokenForGoodError:
                assert broken is not None
                raise broken from None
            except UpstreamFailure as error:
                broken = error
                fruitless = 0 if self._offset > begun_at else fruitless + 1
                if self._offset == self.size or fruitless >= resumes:
                    raise
            else:
                return

    async def _resume(self, broken: UpstreamFailure) -> None:
        """Open the rest; a whole answer instead of the rest is read up to where we were.

        Raises ``_BrokenForGoodError`` when upstream has nothing more to give.
        """
        self._response.close()
        log.info("resuming", at=self._offset, ref=self._question.ref, reason=broken.message)
        headers = {**self._question.headers, "Range": f"bytes={self._offset}-"}
        try:
            self._response = await self._client.ask(replace(self._question, headers=headers))
        except (UpstreamUnavailable, UpstreamTimeout, TooManyRequests) as error:
            await asyncio.sleep(min(error.retry_after or RESUME_PAUSE, MAX_RESUME_PAUSE))
            raise
        except RegistryError as error:
            raise _BrokenForGoodError from error
        begins_at = 0
        if self._response.status == 206:
            match = _CONTENT_RANGE.fullmatch(self._response.headers.get("Content-Range", ""))
            begins_at = -1 if match is None else int(match[1])
        if not 0 <= begins_at <= self._offset:
            raise _BrokenForGoodError
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
    text = response.headers.get("Content-Type", "").partition(";")[0].strip()
    return text if manifests.is_media_type(text) else ""
