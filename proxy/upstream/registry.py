"""Requests to one registry: manifests, blobs, tags (distribution-spec "Pull").

Absence and failure never share an error class: a failure that is reported as absence makes clients
believe that an image or a signature does not exist.
"""

import asyncio
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple

from aiohttp import ClientResponse
from yarl import URL

from proxy.core import manifests
from proxy.core.errors import (
    BlobUnknown,
    DigestInvalid,
    ManifestTooLarge,
    ManifestUnknown,
    NameUnknown,
    TooManyRequests,
    UpstreamRejected,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from proxy.core.names import CATALOG, Digest, Repo, Target, parse_digest
from proxy.core.records import Descriptor
from proxy.core.sources import Body, Place, Priority
from proxy.core.tolerant_json import as_list
from proxy.runtime.executors import in_thread_if_large
from proxy.upstream.body import DownloadPolicy, RegistryBody
from proxy.upstream.budget import SHORTEST_REFILL, Budget
from proxy.upstream.circuit_breaker import CircuitState
from proxy.upstream.client import Client, UpstreamRequest
from proxy.upstream.connection import Connection
from proxy.upstream.failures import FailureLog
from proxy.upstream.headers import next_link, warning_text
from proxy.upstream.lists import MAX_REFERRERS, MAX_TAGS, Bounds
from proxy.upstream.offline import OfflineMode
from proxy.upstream.slots import Slots

PAGE_KEYS: Final = ("n", "last", "next_page", "orderby", "artifactType")
"""Parameters for pages: the specification's names, Quay's and Azure's."""

_MANIFEST: Final = {"Accept": manifests.ACCEPT}
_INDEX: Final = {"Accept": manifests.OCI_INDEX}
_ANY: Final = {"Accept": "*/*"}


class NamedManifest(NamedTuple):
    """The descriptor of a tag or digest, and the text of upstream's ``Warning: 299``."""

    descriptor: Descriptor
    warning: str | None


class FetchedManifest(NamedTuple):
    """A manifest as upstream sent it: not yet verified. ``digest`` is what upstream claims.

    ``warning`` is the text of its ``Warning: 299`` (distribution-spec "Warnings").
    """

    media_type: str
    body: bytes
    content: manifests.ManifestContent
    digest: Digest | None
    warning: str | None = None


class TagPage(NamedTuple):
    """One page of a tags list, and the query of the next page; empty at the end."""

    tags: list[str]
    next_query: dict[str, str]


class RepositoryPage(NamedTuple):
    """One page of a registry's repositories, and the query of the next page; empty at the end."""

    repositories: list[str]
    next_query: dict[str, str]


class Upstream:
    """One configured registry. Its methods raise ``UpstreamFailure``, ``Denied`` or ``NotFound``.

    At most ``downloads`` bodies are open at once; manifests do not wait for them.
    ``is_public``: no request carries credentials, so every client may get its content.
    """

    place: Final = Place.REGISTRY

    def __init__(
        self,
        client: Client,
        budget: Budget,
        *,
        policy: DownloadPolicy,
        downloads: int,
        is_public: bool,
    ) -> None:
        self._client = client
        self.budget = budget
        self._policy = policy
        self.is_public: Final = is_public
        self.slots = Slots(downloads)
        self.circuit_breaker = client.circuit_breaker
        self.credentials = client.credentials
        self.offline = client.transport.offline
        self.failures = FailureLog(client.name, client.transport.url.host or "")

    def __repr__(self) -> str:
        return f"<Upstream {self._client.name}>"

    @property
    def is_offline(self) -> bool:
        """The upstream must not be contacted now."""
        if self.offline.mode is OfflineMode.AUTO:
            return self.circuit_breaker.state is CircuitState.OPEN
        return self.offline.is_forced

    async def log_in(self) -> None:
        """Return if the registry accepts our login. Raises ``TimeoutError`` too."""
        await self._client.log_in()

    def shared_state(self) -> dict[str, object]:
        """Return the current limits for other replicas, as JSON values."""
        return {
            "budget": self.budget.shared_state(),
            "circuit": self.circuit_breaker.shared_state(),
        }

    def apply_shared_state(self, state: Mapping[str, object], seconds_ago: float) -> None:
        """Adopt the newer limits of another replica from ``seconds_ago``."""
        budget, circuit = state.get("budget"), state.get("circuit")
        if isinstance(budget, dict):
            self.budget.apply_shared_state(budget, seconds_ago)
        if isinstance(circuit, dict):
            self.circuit_breaker.apply_shared_state(circuit, seconds_ago)

    async def forget_token(self, repo: Repo) -> None:
        """Drop the token for a repository, so that the token server decides again."""
        await self._client.forget_token(repo)

    async def head_manifest(self, repo: Repo, ref: str) -> NamedManifest | None:
        """Return the descriptor of a tag or digest; None if this registry's HEAD does not have it.

        Docker Hub does not count a HEAD as a pull.
        """
        response = await self._client.send(
            UpstreamRequest("HEAD", repo, "manifests", ref, ManifestUnknown, _MANIFEST)
        )
        response.close()
        self._note(response)
        digest, media_type = self._digest(response), self._media_type(response)
        size = response.content_length
        if response.status >= 400 or digest is None or not media_type or not size:
            return None
        if size > manifests.MAX_SIZE:  # its GET says what is wrong with it
            return None
        warning = warning_text(self._said(response, "Warning"))
        return NamedManifest(Descriptor(media_type, digest, size), warning)

    async def refuse_overspending(self, repo: Repo, ref: str) -> None:
        """Raise ``TooManyRequests`` while the rate limit is used up.

        A HEAD, which does not count as a pull, asks for its current state.
        """
        if self.budget.is_empty:
            await self.head_manifest(repo, ref)
        if self.budget.is_empty:
            raise TooManyRequests(
                f"{self._client.name}: the rate limit of {self.budget.limit} pulls is used up",
                retry_after=max(SHORTEST_REFILL, self.budget.refill),
            )

    def _note(self, response: ClientResponse) -> None:
        self.budget.note(response.headers, self._said(response, "docker-ratelimit-source"))

    async def manifest(self, repo: Repo, ref: str) -> FetchedManifest:
        """Return a manifest. Raises ``ManifestTooLarge`` above 8 MiB."""
        response, body = await self._client.read(
            UpstreamRequest("GET", repo, "manifests", ref, ManifestUnknown, _MANIFEST),
            manifests.MAX_SIZE,
        )
        self._note(response)
        self._client.transport.counters.pulls_spent += 1
        if body is None:
            raise ManifestTooLarge(
                f"{self._client.name}: the manifest is larger than {manifests.MAX_SIZE} bytes"
            )
        content = await in_thread_if_large(len(body), lambda: manifests.read(body))
        media_type = content.own_type or self._media_type(response) or content.implied_type
        warning = warning_text(self._said(response, "Warning"))
        return FetchedManifest(media_type, body, content, self._digest(response), warning)

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        """Return a blob's size in bytes, None when upstream does not announce it."""
        response = await self._client.send(
            UpstreamRequest("HEAD", target.repo, "blobs", digest, BlobUnknown, _ANY)
        )
        response.close()
        if response.status < 400:
            return response.content_length
        body = await self.open(target, digest, 0, Priority.PASS_THROUGH)
        await body.aclose()
        return body.size

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a blob's body, unverified; it resumes automatically if it breaks off."""
        if priority is Priority.PREFETCH and not self.slots.has_spare:
            raise UpstreamUnavailable(f"{self._client.name}: all slots are needed for downloads")
        request = UpstreamRequest("GET", target.repo, "blobs", digest, BlobUnknown, _ANY)
        request = replace(request, is_optional=priority is Priority.PREFETCH)
        async with AsyncExitStack() as stack:
            if priority is not Priority.PASS_THROUGH:
                await self._take_slot(stack)
            limit = self._policy.bandwidth
            share = None if limit is None else limit.share()
            first = await Connection.opened(self._client, request, share, offset)
            stack.callback(first.close)
            body = RegistryBody(
                self._client, replace(request, is_optional=False), first, self._policy, self.slots
            )
            may_split = priority is not Priority.PASS_THROUGH and first.may_split
            body.begin(offset, stack.pop_all(), may_split=may_split, is_public=self.is_public)
            return body
        raise AssertionError("unreachable")

    def reject(self, digest: Digest) -> None:
        """Do nothing: the next request asks the registry again."""

    async def _take_slot(self, stack: AsyncExitStack) -> None:
        """Wait for a download slot, but at most half as long as clients wait for an answer."""
        try:
            await stack.enter_async_context(self.slots.occupy(self._client.answer_seconds / 4))
        except TimeoutError:
            error = UpstreamTimeout(f"{self._client.name}: too many downloads at once")
            error.was_forwarded = False
            raise error from None

    async def tags(self, repo: Repo, query: dict[str, str]) -> TagPage:
        """Return one page of tags; ``query`` may hold ``n`` and ``last``."""
        request = UpstreamRequest("GET", repo, "tags", "list", NameUnknown, _ANY, query)
        return TagPage(*await self._names(request, "tags"))

    async def repositories(self, query: dict[str, str]) -> RepositoryPage:
        """Return one page of the catalogue, which many registries do not have.

        It is no part of the distribution-spec; Distribution documents it.
        """
        request = UpstreamRequest("GET", CATALOG, "", "", NameUnknown, _ANY, query)
        return RepositoryPage(*await self._names(request, "repositories"))

    async def _names(
        self, request: UpstreamRequest, field: str
    ) -> tuple[list[str], dict[str, str]]:
        """Return the strings of a page's ``field``, and the query of the next page."""
        bounds = Bounds(self._client.name, field)
        response, body = await self._client.read(request, bounds.bytes_left)
        next_query = self._next_page(response)
        document = await in_thread_if_large(len(body or b""), lambda: bounds.page(body))
        if not isinstance(document.get(field, False), list | None):  # some say null for none
            raise UpstreamUnavailable(f"{self._client.name}: the {field} list cannot be read")
        names = [name for name in as_list(document[field]) if isinstance(name, str)]
        bounds.count(len(names), MAX_TAGS)
        return names, next_query

    async def referrers(self, repo: Repo, subject: Digest) -> list[dict[str, object]] | None:
        """Return descriptors of the referrers of ``subject``; None without the API.

        All pages together may take as long as one answer.
        """
        try:
            async with asyncio.timeout(self._client.answer_seconds):
                return await self._referrers(repo, subject)
        except TimeoutError:
            raise UpstreamTimeout(
                f"{self._client.name}: the list of referrers does not end in time"
            ) from None

    async def _referrers(self, repo: Repo, subject: Digest) -> list[dict[str, object]] | None:
        entries: list[dict[str, object]] = []
        query: dict[str, str] = {}
        bounds = Bounds(self._client.name, "referrers")
        is_first = True
        while is_first or query:
            question = UpstreamRequest(
                "GET", repo, "referrers", subject, NameUnknown, _INDEX, query
            )
            try:
                response, body = await self._client.read(question, bounds.bytes_left)
            except (NameUnknown, UpstreamRejected):
                if is_first:
                    return None
                raise UpstreamUnavailable(
                    f"{self._client.name}: the list of referrers breaks off"
                ) from None
            if is_first and self._media_type(response) != manifests.OCI_INDEX:
                return None
            document = await in_thread_if_large(len(body or b""), partial(bounds.page, body))
            listed = manifests.referrers_in(document)
            if listed is None:
                raise UpstreamUnavailable(
                    f"{self._client.name}: the list of referrers cannot be read"
                )
            entries += listed
            bounds.count(len(entries), MAX_REFERRERS)
            query = self._next_page(response)
            is_first = False
        return entries

    def _next_page(self, response: ClientResponse) -> dict[str, str]:
        """Return the query of the page that ``Link`` leads to, empty when there is none.

        Raises ``UpstreamUnavailable`` for a ``Link`` that cannot be followed.
        """
        with self._client.transport.translate_errors():
            link = next_link(response.headers.getall("Link", []))
            if link is None:
                return {}
            if not link.isascii():  # RFC 8288 §3; others would be slow to encode
                raise UpstreamUnavailable(f"{self._client.name}: its pages cannot be followed")
            query = response.url.join(URL(link)).query
        page = {name: value for name, value in query.items() if name in PAGE_KEYS}
        is_leaked = self._client.transport.redactor.is_leaked_by(" ".join(page.values()))
        if is_leaked or not page.keys() & {"last", "next_page"}:
            raise UpstreamUnavailable(f"{self._client.name}: its pages cannot be followed")
        return page

    def _digest(self, response: ClientResponse) -> Digest | None:
        try:
            return parse_digest(self._said(response, "Docker-Content-Digest"))
        except DigestInvalid:
            return None

    def _media_type(self, response: ClientResponse) -> str:
        text = self._said(response, "Content-Type").partition(";")[0].strip()
        return text if manifests.is_media_type(text) else ""

    def _said(self, response: ClientResponse, name: str) -> str:
        """Return a header that clients will see; empty if it is missing or tells a secret."""
        value = response.headers.get(name, "")
        return "" if self._client.transport.redactor.is_leaked_by(value) else value
