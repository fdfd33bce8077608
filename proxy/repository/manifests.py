"""The read-through for manifests: from memory, the disk or upstream."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Final, TypeVar

from proxy.content.content import Content
from proxy.content.notices import Cached
from proxy.core import manifests
from proxy.core.errors import (
    ContentMismatch,
    ManifestUnknown,
    NotFound,
    NotHeld,
    UpstreamFailure,
)
from proxy.core.manifests import ManifestContent
from proxy.core.names import Digest, Tag, Target, is_digest, matches, sha256
from proxy.core.policy import CacheDirective
from proxy.core.records import BlobRecord, Descriptor
from proxy.core.sources import Place, SharedManifest
from proxy.repository.manifest_cache import CachedManifest, ManifestCache
from proxy.repository.negative_cache import NegativeCache
from proxy.repository.origins import Origin
from proxy.repository.results import Manifest, ManifestHead
from proxy.repository.tag_lists import TagLists
from proxy.runtime.executors import in_thread_if_large
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight
from proxy.runtime.ttl_cache import TTLCache
from proxy.upstream.registry import NamedManifest, Upstream

Result = TypeVar("Result")
DESCRIBED_SECONDS: Final = 3600.0
_MAX_DEPTH: Final = 4
_MAX_LOOKUPS: Final = 20_000
"""Descriptors looked up before an image counts as incomplete: a tenth of a second."""

_TURN: Final = 250
"""Descriptors looked up before other tasks get a turn."""


class Manifests:
    """The cache of manifests."""

    def __init__(
        self,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        held: ManifestCache,
        lists: TagLists,
        absences: NegativeCache,
    ) -> None:
        self._content = content
        self._sources = sources
        self._cached = held
        self._lists = lists
        self.absences: Final = absences
        self.on_fetched: Final[list[Callable[[Target, Descriptor, bytes, bool], None]]] = []
        """Called with a manifest that the registry has sent, and whether it is public."""
        self._described: TTLCache[Descriptor] = TTLCache()
        self._fetches: SingleFlight[Manifest] = SingleFlight("fetch manifest")
        self._heads: SingleFlight[NamedManifest] = SingleFlight("head manifest")

    async def close(self) -> None:
        """Cancel running requests."""
        await self._heads.close()
        await self._fetches.close()

    async def get(self, target: Target, digest: Digest, directive: CacheDirective) -> Manifest:
        """Return a manifest by digest. Raises ``RegistryError``."""
        if directive is CacheDirective.REVALIDATE:
            await self.absences.forget(target, digest)
        is_new = await self.copy_from_other_source(target, digest, directive)
        linked = await self._content.links.has(target, digest)  # also brings the record into RAM
        hit = await self._cached.get(digest)
        if hit is None or not linked:
            self._refuse_asking(target, digest, directive)
        elif self.is_offline(target) and not await self._is_whole(target, hit, count()):
            raise ManifestUnknown(f"{target}@{digest} is not held in full, and this is offline")
        if hit is None:
            return await self.fetch(target, digest)
        if not linked:
            await self.ask(target, digest)
        self._cached.note_sizes(target, hit)
        if is_new:
            return replace(hit, outcome=Outcome.MISS)
        return hit if linked else replace(hit, outcome=Outcome.REVALIDATED)

    def in_ram(self, digest: Digest) -> Manifest | None:
        """Return a manifest in memory as a hit. The caller checks if it may be served."""
        held = self._cached.in_ram(digest)
        return None if held is None else held.hit

    def cached(self, target: Target, record: BlobRecord) -> Manifest | None:
        """Return a held manifest that a repository may serve as a hit, and count its use.

        None says nothing: ``get`` knows more.
        """
        return self._cached.cached(target, record)

    def note_sizes(self, target: Target, digest: Digest) -> None:
        """Note what a manifest in memory lists, which another process has served."""
        if (held := self._cached.in_ram(digest)) is not None:
            self._cached.note_sizes(target, held.hit)

    async def head(self, target: Target, digest: Digest, directive: CacheDirective) -> ManifestHead:
        """Return the descriptor of a digest; upstream gets no GET. Raises ``RegistryError``."""
        await self.copy_from_other_source(target, digest, directive)
        held = self._cached.in_ram(digest)
        if (held is not None and not held.is_stored) or await self._content.holds(digest):
            manifest = await self.get(target, digest, directive)
            return ManifestHead(manifest.descriptor, manifest.outcome)
        self._refuse_asking(target, digest, directive)
        descriptor = await self._described.get(f"{target} {digest}")
        if descriptor is not None:
            return ManifestHead(descriptor, Outcome.HIT)
        named = await self.ask(target, digest)
        return ManifestHead(named.descriptor, Outcome.MISS)

    def is_offline(self, target: Target) -> bool:
        """Return True if the settings forbid requests to an upstream."""
        return self._sources[target.upstream].rule.offline

    async def restore(self, target: Target, digest: Digest) -> bool:
        """Store a missing manifest on the disk, from memory or upstream; return True if it is held.

        Raises ``RegistryError``.
        """
        held = self._cached.in_ram(digest)
        if held is None:
            await self.get(target, digest, CacheDirective.REVALIDATE)
        else:
            children = held.hit.children
            listed = None if children is None else children.listed
            await self._content.store_manifest(held.hit.descriptor, held.hit.body, listed)
        return await self._content.holds(digest)

    async def forget(self, target: Target, digests: Iterable[Digest]) -> None:
        """Drop the lists of a repository, and these manifests from memory unless they are held."""
        await self._lists.forget_all(target)
        for digest in digests:
            await self._described.delete(f"{target} {digest}")
            await self._cached.forget(target, digest)

    async def ask(self, target: Target, ref: str) -> NamedManifest:
        """Return upstream's answer about ``ref``, by HEAD; concurrent callers share one request.

        For a digest the answer confirms that the repository holds it, so it is linked. For a tag
        the answer is a claim: its digest may belong to another repository's private content.
        Raises ``RegistryError``.
        """
        ask = partial(self._released, target, ref, self._ask)
        return await self._heads.do((target, ref), ask)

    async def _released(
        self, target: Target, ref: str, ask: Callable[[Target, str], Awaitable[Result]]
    ) -> Result:
        """Ask upstream, then let other replicas do so."""
        try:
            return await ask(target, ref)
        finally:
            if target.upstream in self._sources:  # a reload may have removed it
                self._sources[target.upstream].release(target.upstream, ref)

    async def _ask(self, target: Target, ref: str) -> NamedManifest:
        async with self._asking(target, ref) as upstream:
            named = await upstream.head_manifest(target.repo, ref)
        if named is None or (is_digest(ref) and named.descriptor.digest != ref):
            fetched = await self.fetch(target, ref)
            return NamedManifest(fetched.descriptor, fetched.warning)
        descriptor = named.descriptor
        link = self._content.links.add if is_digest(ref) else self._content.links.add_public
        await link(target, [descriptor.digest])
        await self._described.set(f"{target} {descriptor.digest}", descriptor, DESCRIBED_SECONDS)
        return named

    @asynccontextmanager
    async def _asking(self, target: Target, ref: str) -> AsyncIterator[Upstream]:
        """Yield the upstream to ask about ``ref``, and record if it has no such manifest.

        Raises ``ManifestUnknown`` without a request if that is recorded. An absent tag is also
        removed from the last known list.
        """
        await self.absences.refuse(target, ref)
        try:
            yield self._sources[target.upstream].upstream
        except NotFound as error:
            await self.absences.learn(target, ref, error)
            if not is_digest(ref):
                await self._lists.remove(target, Tag(ref))
            raise

    async def last_good(
        self, target: Target, digests: Iterable[Digest], warning: str
    ) -> Manifest | None:
        """Return the first of these images that is held in full, as a stale answer."""
        for digest in dict.fromkeys(digests):
            if await self.is_whole(target, digest) and (hit := await self._cached.get(digest)):
                return replace(hit, outcome=Outcome.STALE, warning=warning)
        return None

    async def held(self, target: Target, digest: Digest, warning: str) -> Manifest | None:
        """Return a held manifest of this repository as a stale answer, even without its blobs."""
        if not await self._content.links.is_confirmed(target, digest):
            return None
        hit = await self._linked(target, digest)
        return hit and replace(hit, outcome=Outcome.STALE, warning=warning)

    async def is_whole(self, target: Target, digest: Digest) -> bool:
        """Return True if a client can pull an image from this cache without upstream.

        Podman and CRI-O choose their mirror by the manifest, and then ask only there for its blobs.
        """
        hit = await self._linked(target, digest)
        return hit is not None and await self._is_whole(target, hit, count())

    async def _linked(self, target: Target, digest: Digest) -> Manifest | None:
        """Return a held manifest of this repository, and note the sizes of its blobs."""
        if not await self._content.links.has(target, digest):
            return None
        hit = await self._cached.get(digest)
        if hit is not None:
            self._cached.note_sizes(target, hit)
        return hit

    async def fetch(self, target: Target, ref: str) -> Manifest:
        """Return upstream's manifest; concurrent callers share one request. Tags are not recorded.

        Raises ``RegistryError``.
        """
        key = (target, ref)
        joined = self._fetches.is_running(key)
        manifest = await self._fetches.do(key, partial(self._released, target, ref, self._fetch))
        return replace(manifest, outcome=Outcome.JOIN) if joined else manifest

    async def _fetch(self, target: Target, ref: str) -> Manifest:
        started = time.monotonic()
        async with self._asking(target, ref) as upstream:
            await upstream.refuse_overspending(target.repo, ref)
            fetched = await upstream.manifest(target.repo, ref)
        body, content = fetched.body, fetched.content
        claimed = Digest(ref) if is_digest(ref) else fetched.digest
        if claimed is None and not content.is_manifest:
            raise ContentMismatch(f"{target}: the answer for {ref} is not a manifest")
        digest = (
            await in_thread_if_large(len(body), lambda: sha256(body))
            if claimed is None
            else claimed
        )
        descriptor = Descriptor(fetched.media_type, digest, len(body))
        if not await in_thread_if_large(len(body), lambda: matches(digest, body)):
            return await self._signed(target, descriptor, body)
        hit = Manifest(descriptor, body, Outcome.HIT, content.children)
        await self._store(target, hit, content, started, is_public=upstream.is_public)
        for listener in self.on_fetched:
            listener(target, descriptor, body, upstream.is_public)
        for existing in {ref, digest}:
            await self.absences.forget(target, existing)
        return replace(hit, outcome=Outcome.MISS, warning=fetched.warning)

    async def _store(
        self,
        target: Target,
        hit: Manifest,
        content: ManifestContent,
        started: float,
        *,
        is_public: bool,
    ) -> None:
        """Keep a verified manifest: in memory at once, then on the disk if there is room."""
        digest = hit.descriptor.digest
        self._cached.add(CachedManifest(hit, is_stored=False))
        self._cached.note_sizes(target, hit)
        await self._content.links.add(target, [digest])
        listed = [child.digest for child in content.listed or ()]
        await self._content.links.add_public(target, listed)
        store = self._content.store_manifest
        if await store(hit.descriptor, hit.body, content.listed, is_public=is_public):
            seconds = time.monotonic() - started
            self._content.arrived(Cached(target, digest, len(hit.body), hit.place, seconds))
        if await self._content.holds(digest):
            self._cached.add(CachedManifest(hit, is_stored=True))
        if content.subject is not None:
            entry = content.subject.entry(hit.descriptor)
            await self._content.links.add_referrer(target, content.subject.digest, entry)

    async def copy_from_other_source(
        self, target: Target, digest: Digest, directive: CacheDirective
    ) -> bool:
        """Copy a manifest from a fallback directory, the bucket or a replica.

        Only a manifest of the same repository there. Returns True if it was copied.
        """
        origin = self._sources[target.upstream]
        fallbacks, shared = origin.fallbacks, origin.manifest_source
        if (not fallbacks and shared is None) or directive is CacheDirective.ONLY_IF_CACHED:
            return False
        started = time.monotonic()
        held = self._cached.in_ram(digest)  # an evicted one may still be in memory
        in_ram_only = held is not None and not held.is_stored
        is_held = in_ram_only or await self._content.holds(digest)
        if is_held and await self._content.links.has(target, digest):
            return False
        for fallback in fallbacks:
            body = await fallback.manifest(target, digest)
            found = body and SharedManifest(body, "", is_public=False, place=Place.DISK)
            if found and await self._copy(target, digest, found, started):
                return True
        found = None if shared is None or is_held else await shared.manifest(target, digest)
        return found is not None and await self._copy(target, digest, found, started)

    async def _copy(
        self, target: Target, digest: Digest, found: SharedManifest, started: float
    ) -> bool:
        """Store a manifest of another source; return False if its type is unknown."""
        body, media_type = found.body, found.media_type
        content = await in_thread_if_large(len(body), partial(manifests.read, body))
        if not media_type and not content.is_manifest:
            return False
        media_type = media_type or content.own_type or content.implied_type
        descriptor = Descriptor(media_type, digest, len(body))
        hit = Manifest(descriptor, body, Outcome.HIT, content.children, place=found.place)
        await self._store(target, hit, content, started, is_public=found.is_public)
        return True

    async def _signed(self, target: Target, descriptor: Descriptor, body: bytes) -> Manifest:
        """Return a signed schema 1 manifest, which is passed on and not kept.

        Its digest is that of the payload it signs, so its bytes cannot be stored by digest. Raises
        ``ContentMismatch`` for any other manifest with a wrong digest.
        """
        payload = await in_thread_if_large(len(body), lambda: manifests.signed_payload(body))
        if payload is None or not matches(descriptor.digest, payload):
            error = ContentMismatch(f"{target}: the manifest does not match {descriptor.digest}")
            error.found = sha256(body)
            self._content.faults.report_mismatch(error, target, descriptor.digest, Place.REGISTRY)
            raise error
        return Manifest(descriptor, body, Outcome.THROUGH, None)

    async def _is_whole(
        self, target: Target, manifest: Manifest, lookups: Iterator[int], *, depth: int = 0
    ) -> bool:
        """Return True if an image is held in full; for an index, any one of its images.

        False for a manifest that could not be read, or that lists too much to look up.
        """
        children = manifest.children
        if children is None:
            return False
        for blob in children.blobs:
            if not await _may_look_up(lookups):
                return False
            is_public = await self._content.is_public(blob.digest)
            if not is_public and not await self._may_serve(target, blob.digest):
                return False
        for child in children.manifests:
            if depth == _MAX_DEPTH or not await _may_look_up(lookups):
                return False
            if await self._may_serve(target, child.digest):
                await self.copy_from_other_source(target, child.digest, CacheDirective.ANY)
                below = await self._cached.get(child.digest)
                if below is not None and await self._is_whole(
                    target, below, lookups, depth=depth + 1
                ):
                    return True
        return not children.manifests

    async def _may_serve(self, target: Target, digest: Digest) -> bool:
        """Return True if content can be served under this name without the registry.

        That is, if it is held and linked, or if another source has it for the repository.
        """
        if await self._content.holds(digest) and await self._content.links.has(target, digest):
            return True
        for source in self._sources[target.upstream].local_sources:
            with suppress(NotFound, UpstreamFailure):
                await source.blob_size(target, digest)
                return True
        return False

    def _refuse_asking(self, target: Target, ref: str, directive: CacheDirective) -> None:
        if self.is_offline(target):
            raise ManifestUnknown(f"{target} {ref} is not held, and this is offline")
        if directive is CacheDirective.ONLY_IF_CACHED:
            raise NotHeld(f"{target} {ref} is not held")


async def _may_look_up(lookups: Iterator[int]) -> bool:
    """Return False after too many lookups; now and then, let other tasks run first."""
    lookup = next(lookups)
    if lookup % _TURN == _TURN - 1:
        await asyncio.sleep(0)
    return lookup < _MAX_LOOKUPS
