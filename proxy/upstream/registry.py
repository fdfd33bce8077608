"""What is fetched from one registry: manifests, blobs, tags (distribution-spec "Pull").

Absence and failure never share an error class: a failure told as absence makes clients believe
that an image or a signature does not exist.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from enum import Enum
from typing import Final, NamedTuple

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
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.names import Digest, Repo, parse_digest
from proxy.records import Descriptor
from proxy.threads import by_size
from proxy.upstream.budget import Budget
from proxy.upstream.client import Client, Question
from proxy.upstream.download import Download, Sink, Terms
from proxy.upstream.places import Places

MAX_PAGES: Final = 100
PAGE_KEYS: Final = ("n", "last", "next_page", "orderby", "artifactType")
"""What pages are called: the specification's names, Quay's and Azure's."""

MAX_TAGS_BODY: Final = 16 * 1024 * 1024
_MANIFEST: Final = {"Accept": manifests.ACCEPT}
_INDEX: Final = {"Accept": manifests.OCI_INDEX}
_ANY: Final = {"Accept": "*/*"}


class FetchedManifest(NamedTuple):
    """A manifest as upstream sent it: not yet verified. ``digest`` is what upstream claims."""

    media_type: str
    body: bytes
    content: manifests.ManifestContent
    digest: Digest | None


class Body(NamedTuple):
    """A blob that arrives: its size in bytes if announced, and its bytes, not yet verified.

    They are had in their order from ``chunks``, or sooner and in any order from ``pour``.
    """

    size: int | None
    chunks: AsyncIterator[bytes]
    pour: Callable[[Sink], Awaitable[None]]


class Need(Enum):
    """Who wants a body."""

    KEPT = "kept"
    """Clients wait, and the cache takes it as fast as it comes."""
    THROUGH = "through"
    """A client that may be slow, so it waits for no others and no others wait for it."""
    AHEAD = "ahead"
    """Nobody as yet: asked for once, and a refusal is no failure of the registry."""


class TagPage(NamedTuple):
    """One page of a tags list, and the query of the next page; empty at the end."""

    tags: list[str]
    further: dict[str, str]


class Upstream:
    """One configured registry. Its methods raise ``UpstreamFailure``, ``Denied`` or ``Absent``.

    ``downloads`` bodies at the most are open at once; manifests do not wait for them.
    """

    def __init__(self, client: Client, budget: Budget, *, terms: Terms, downloads: int) -> None:
        self._client = client
        self.budget = budget
        self._terms = terms
        self.places = Places(downloads)

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
        if response.status >= 400 or digest is None or not media_type or not size:
            return None
        if size > manifests.MAX_SIZE:  # its GET says what is wrong with it
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
        content = await by_size(len(body), lambda: manifests.read(body))
        media_type = content.own_type or _media_type(response) or content.implied_type
        return FetchedManifest(media_type, body, content, _digest(response))

    async def blob_size(self, repo: Repo, digest: Digest) -> int | None:
        """Return a blob's size in bytes, None when upstream does not announce it."""
        response = await self._client.ask(
            Question("HEAD", repo, "blobs", digest, BlobUnknown, _ANY)
        )
        response.close()
        if response.status < 400:
            return response.content_length
        async with self.blob(repo, digest, Need.THROUGH) as body:
            return body.size

    @asynccontextmanager
    async def blob(self, repo: Repo, digest: Digest, need: Need) -> AsyncIterator[Body]:
        """Open a blob's body, unverified; it is resumed where it breaks off."""
        async with AsyncExitStack() as stack:
            if need is Need.AHEAD and not self.places.has_some_to_spare:
                raise UpstreamUnavailable(f"{self._client.name}: all places are wanted by others")
            if need is not Need.THROUGH:
                await self._place(stack)
            question = Question("GET", repo, "blobs", digest, BlobUnknown, _ANY)
            response = await self._client.ask(replace(question, is_spare=need is Need.AHEAD))
            terms, places = self._terms, self.places
            download = Download(self._client, question, response, terms=terms, places=places)
            stack.callback(download.close)
            yield Body(download.size, download.chunks(), download.pour)

    async def _place(self, stack: AsyncExitStack) -> None:
        """Wait for a place among the downloads, but for no more than half as long as clients do."""
        try:
            await stack.enter_async_context(self.places.one(self._client.answer_seconds / 4))
        except TimeoutError:
            raise UpstreamTimeout(f"{self._client.name}: too many downloads at once") from None

    async def tags(self, repo: Repo, query: dict[str, str]) -> TagPage:
        """Return one page of tags; ``query`` may hold ``n`` and ``last``."""
        response, body = await self._client.read(
            Question("GET", repo, "tags", "list", NameUnknown, _ANY, query), MAX_TAGS_BODY
        )
        further = self._next_page(response)
        text = body or b""
        document = await by_size(len(text), lambda: read_object(text))
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
            text = body or b""
            listed = await by_size(len(text), lambda text=text: manifests.read_referrers(text))  # type: ignore[misc]
            if listed is None:
                raise UpstreamUnavailable(
                    f"{self._client.name}: the list of referrers cannot be read"
                )
            entries += listed
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


def _digest(response: ClientResponse) -> Digest | None:
    try:
        return parse_digest(response.headers.get("Docker-Content-Digest", ""))
    except DigestInvalid:
        return None


def _media_type(response: ClientResponse) -> str:
    text = response.headers.get("Content-Type", "").partition(";")[0].strip()
    return text if manifests.is_media_type(text) else ""
