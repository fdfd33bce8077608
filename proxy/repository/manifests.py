"""Answers for manifests by digest, and the one way in which manifests come here."""

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from typing import Final

from cachetools import LRUCache

from proxy.content.content import Content
from proxy.core import manifests
from proxy.core.errors import ContentMismatch, ManifestUnknown, NotFound, NotHeld, TooManyRequests
from proxy.core.manifests import ManifestContent
from proxy.core.names import Digest, Tag, Target, is_digest, matches, sha256
from proxy.core.policy import CacheDirective
from proxy.core.records import BlobRecord, Clock, Descriptor, TagRecord
from proxy.index.listings import TagLists
from proxy.repository.fallbacks import find_manifest, have
from proxy.repository.memory_manifest import KeptManifest
from proxy.repository.negative_cache import NegativeCache
from proxy.repository.origins import Origin
from proxy.repository.results import Described, Manifest
from proxy.runtime.executors import LARGE, by_size
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight
from proxy.runtime.ttl_cache import TTLCache
from proxy.upstream.budget import SHORTEST_REFILL

DESCRIBED_SECONDS: Final = 3600.0
_MAX_DEPTH: Final = 4
_MAX_LOOKS: Final = 20_000
"""How many pieces are looked for before an image counts as not whole: a tenth of a second."""

_TURN: Final = 250
"""Pieces that are looked for before the loop turns."""

_EACH_SIZE: Final = 600
"""Bytes that the objects for a size take in RAM."""

_SHARE_OF_SIZES: Final = 8

_MAX_LARGE: Final = 4
"""Large manifests that are read from the disk and proven at a time."""


class Manifests:
    """The cache of manifests."""

    def __init__(
        self,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        lists: TagLists,
        clock: Clock,
        ram_bytes: int,
    ) -> None:
        self._content = content
        self._index = content.index
        self._sources = sources
        self._lists = lists
        self._clock = clock
        hints = ram_bytes // _SHARE_OF_SIZES
        self._ram: LRUCache[Digest, KeptManifest] = LRUCache(
            ram_bytes - hints, getsizeof=lambda kept: kept.ram_bytes
        )
        self._absences = NegativeCache(sources, ManifestUnknown)
        self._described: TTLCache[Descriptor] = TTLCache()
        self._fetches: SingleFlight[Manifest] = SingleFlight("fetch manifest")
        self._questions: SingleFlight[Descriptor] = SingleFlight("ask for manifest")
        self._loads: SingleFlight[Manifest | None] = SingleFlight("read manifest")
        self._large = asyncio.Semaphore(_MAX_LARGE)
        self.sizes: Final[LRUCache[tuple[Target, Digest], int]] = LRUCache(
            max(1, hints // _EACH_SIZE)
        )
        """Bytes of blobs, as their repository's manifests seen so far say: a hint, no fact."""

    async def close(self) -> None:
        """Cancel what runs."""
        await self._questions.close()
        await self._fetches.close()
        await self._loads.close()

    async def get(self, target: Target, digest: Digest, asked: CacheDirective) -> Manifest:
        """Return a manifest by digest. Raises ``RegistryError``."""
        if asked is CacheDirective.REVALIDATE:
            await self.doubt_absence(target, digest)
        await self.take_in(target, digest, asked)
        kept = await self._kept(target, digest)
        linked = kept is not None and await self._content.linked(target, digest)
        if kept is None or not linked:
            self._refuse_asking(target, digest, asked)
        elif self.is_offline(target) and not await self._whole(target, kept):
            raise ManifestUnknown(f"{target}@{digest} is not held in full, and this is offline")
        if kept is None:
            return await self._fetch_once(target, digest)
        if not linked:
            await self.ask(target, digest)
            return replace(kept.hit, outcome=Outcome.REVALIDATED)
        return kept.hit

    def in_ram(self, digest: Digest) -> Manifest | None:
        """Return what lies in RAM, as a hit; whether it may be served is for others to ask."""
        kept = self._ram.get(digest)
        return None if kept is None else kept.hit

    async def head(self, target: Target, digest: Digest, asked: CacheDirective) -> Described:
        """Return what a digest names, asking upstream for no body. Raises ``RegistryError``."""
        await self.take_in(target, digest, asked)
        kept = self._ram.get(digest)
        if (kept is not None and not kept.stored) or await self._content.holds(digest):
            manifest = await self.get(target, digest, asked)
            return Described(manifest.descriptor, manifest.outcome)
        self._refuse_asking(target, digest, asked)
        descriptor = await self._described.get(f"{target} {digest}")
        if descriptor is not None:
            return Described(descriptor, Outcome.HIT)
        return Described(await self.ask(target, digest), Outcome.MISS)

    async def holds(self, digest: Digest) -> bool:
        """Tell whether a manifest is on the disk."""
        return await self._content.holds(digest)

    def is_offline(self, target: Target) -> bool:
        """Tell whether an upstream is not to be asked anything."""
        return self._sources[target.upstream].rule.offline

    async def restore(self, target: Target, digest: Digest) -> bool:
        """Have a manifest on the disk that is not; tell whether it is now.

        RAM may still have it, which was proven when it came. Raises ``RegistryError``.
        """
        kept = self._ram.get(digest)
        if kept is None:
            await self.get(target, digest, CacheDirective.REVALIDATE)
        else:
            await self._content.keep(kept.descriptor, kept.body, kept.listed)
        return await self.holds(digest)

    async def forget(self, target: Target, digests: Iterable[Digest]) -> None:
        """Drop from memory what is no longer held, and what upstream said of its repository."""
        await self._lists.forget(target)
        for digest in digests:
            await self._described.forget(f"{target} {digest}")
            self.sizes.pop((target, digest), None)
            if not await self.holds(digest):
                self._ram.pop(digest, None)

    async def doubt_absence(self, target: Target, ref: str) -> None:
        """Ask upstream again for what it said does not exist."""
        await self._absences.forget(target, ref)

    async def ask(self, target: Target, ref: str) -> Descriptor:
        """Ask upstream what ``ref`` is.

        The answer about a digest confirms that the repository holds it, which is remembered. The
        answer about a tag is a claim: the digest in it may be that of another repository's
        content. One question however many ask. Raises ``RegistryError``.
        """
        return await self._questions.do((target, ref), lambda: self._ask(target, ref))

    async def _ask(self, target: Target, ref: str) -> Descriptor:
        await self._absences.refuse(target, ref)
        try:
            descriptor = await self._sources[target.upstream].upstream.head_manifest(
                target.repo, ref
            )
        except NotFound as error:
            await self._absent(target, ref, error)
            raise
        if descriptor is None or (is_digest(ref) and descriptor.digest != ref):
            return (await self._fetch_once(target, ref)).descriptor
        confirmed = [descriptor.digest] if is_digest(ref) else []
        await self._index.link(target, confirmed or self._content.public([descriptor.digest]))
        await self._described.learn(f"{target} {descriptor.digest}", descriptor, DESCRIBED_SECONDS)
        return descriptor

    async def _absent(self, target: Target, ref: str, error: NotFound) -> None:
        """Remember that upstream has no such manifest; a tag leaves the kept list of tags too."""
        await self._absences.learn(target, ref, error)
        if not is_digest(ref):
            await self._lists.forget_tag(target, Tag(ref))

    async def fetch_tag(self, target: Target, tag: Tag) -> Manifest:
        """Return upstream's manifest for a tag and record the tag. Raises ``RegistryError``."""
        return await self._fetch_once(target, tag)

    async def last_good(
        self, target: Target, digests: Iterable[Digest], warning: str
    ) -> Manifest | None:
        """Return the first of these that a client could pull here and now in full."""
        for digest in dict.fromkeys(digests):
            if await self.is_whole(target, digest) and (kept := await self._kept(target, digest)):
                return replace(kept.hit, outcome=Outcome.STALE, warning=warning)
        return None

    async def held(self, target: Target, digest: Digest, warning: str) -> Manifest | None:
        """Return a held manifest of this repository as a stale answer, whole or not."""
        kept = await self._kept(target, digest)
        if kept is None or not await self._index.linked(target, digest):
            return None
        return replace(kept.hit, outcome=Outcome.STALE, warning=warning)

    async def is_whole(self, target: Target, digest: Digest) -> bool:
        """Tell whether a client could pull this here and now in full.

        Some choose their mirror by the manifest and then ask nowhere else for its blobs.
        """
        if not await self._content.linked(target, digest):
            return False
        kept = await self._kept(target, digest)
        return kept is not None and await self._whole(target, kept)

    async def _fetch_once(self, target: Target, ref: str) -> Manifest:
        """Return a manifest from upstream; one request however many want it."""
        key = (target, ref)
        joined = self._fetches.is_running(key)
        manifest = await self._fetches.do(key, lambda: self._fetch(target, ref))
        return replace(manifest, outcome=Outcome.JOIN) if joined else manifest

    async def _fetch(self, target: Target, ref: str) -> Manifest:
        await self._absences.refuse(target, ref)
        await self._refuse_overspending(target, ref)
        upstream = self._sources[target.upstream].upstream
        try:
            fetched = await upstream.manifest(target.repo, ref)
        except NotFound as error:
            await self._absent(target, ref, error)
            raise
        body, content = fetched.body, fetched.content
        claimed = Digest(ref) if is_digest(ref) else fetched.digest
        if claimed is None and not content.is_manifest:
            raise ContentMismatch(f"{target}: what came for {ref} is no manifest")
        digest = await by_size(len(body), lambda: sha256(body)) if claimed is None else claimed
        descriptor = Descriptor(fetched.media_type, digest, len(body))
        if not await by_size(len(body), lambda: matches(digest, body)):
            return await self._signed(target, descriptor, body)
        hit = Manifest(descriptor, body, Outcome.HIT, content.children)
        await self._keep(target, hit, content, is_public=upstream.is_anonymous)
        if not is_digest(ref):
            await self._index.set_tag(target, Tag(ref), TagRecord(descriptor, self._clock()))
        return replace(hit, outcome=Outcome.MISS)

    async def _keep(
        self, target: Target, hit: Manifest, content: ManifestContent, *, is_public: bool
    ) -> None:
        """Hold a proven manifest, and link it to its repository."""
        kept = self._remember(target, hit, stored=False)
        digest, listed = hit.descriptor.digest, [child.digest for child in content.listed or ()]
        await self._index.link(target, [digest, *self._content.public(listed)])
        await self._content.keep(hit.descriptor, hit.body, content.listed, is_public=is_public)
        if await self._content.holds(digest):
            self._put(kept._replace(stored=True))
        if content.subject is not None:
            entry = content.subject.entry(hit.descriptor)
            await self._index.add_referrer(target, content.subject.digest, entry)

    async def take_in(self, target: Target, digest: Digest, asked: CacheDirective) -> None:
        """Copy a manifest from a fallback directory that lists it for this repository."""
        fallbacks = self._sources[target.upstream].fallbacks
        if not fallbacks or asked is CacheDirective.ONLY_IF_CACHED:
            return
        is_held = self.in_ram(digest) is not None or await self._content.holds(digest)
        if is_held and await self._content.linked(target, digest):
            return
        found = await find_manifest(fallbacks, target, digest)
        if found is not None:
            await self._keep(target, found.manifest, found.content, is_public=False)

    async def _signed(self, target: Target, descriptor: Descriptor, body: bytes) -> Manifest:
        """Return a signed schema 1 manifest, whose digest is that of the payload it signs.

        Its bytes are not its digest, so it is proven and passed on, and not kept. Raises
        ``ContentMismatch`` for everything else that is not its digest.
        """
        payload = await by_size(len(body), lambda: manifests.signed_payload(body))
        if payload is None or not matches(descriptor.digest, payload):
            self._content.counters.mismatches += 1
            raise ContentMismatch(f"{target}: the manifest that came is not {descriptor.digest}")
        return Manifest(descriptor, body, Outcome.THROUGH, None)

    async def _kept(self, target: Target, digest: Digest) -> KeptManifest | None:
        """Return a held manifest, proven anew when it comes from the disk.

        What has left the index leaves RAM with it; what the disk had no room for stays in RAM only.
        """
        held = await self._content.find(digest)
        kept = self._ram.get(digest)
        if kept is not None and (held is not None or not kept.stored):
            self._index.touch(digest)
            return kept
        self._ram.pop(digest, None)
        if held is None or held.size > manifests.MAX_SIZE:
            return None
        hit = await self._loads.do(digest, lambda: self._load(held))
        return None if hit is None else self._remember(target, hit, stored=True)

    async def _load(self, held: BlobRecord) -> Manifest | None:
        """Return a manifest from the disk, proven; a few large ones at a time.

        The disk gives them faster than they are proven, and those that wait would fill the memory.
        """
        async with self._large if held.size > LARGE else nullcontext():
            body = await self._content.read(held.digest)
            if body is None:
                return None
            found = await by_size(len(body), lambda: _proven(held.digest, body))
        if found is None:
            await self._content.drop(held.digest, reason="its bytes have changed")
            return None
        if held.media_type is None and not found.is_manifest:
            return None
        media_type = found.own_type or held.media_type or found.implied_type
        descriptor = Descriptor(media_type, held.digest, len(body))
        return Manifest(descriptor, body, Outcome.HIT, found.children)

    def _remember(self, target: Target, hit: Manifest, *, stored: bool) -> KeptManifest:
        kept = KeptManifest(hit, stored)
        self._put(kept)
        for blob in () if hit.children is None else hit.children.blobs:
            self.sizes[target, blob.digest] = blob.size
        return kept

    def _put(self, kept: KeptManifest) -> None:
        if kept.ram_bytes <= self._ram.maxsize:
            self._ram[kept.descriptor.digest] = kept

    async def _whole(self, target: Target, kept: KeptManifest) -> bool:
        """Tell whether all is here that a client needs; of an index, any one of its images.

        An image is not whole when it is not known what it lists, or when it lists too much.
        """
        return await self._is_whole(target, kept, count(), depth=0)

    async def _is_whole(
        self, target: Target, kept: KeptManifest, looks: Iterator[int], *, depth: int
    ) -> bool:
        if kept.children is None:
            return False
        for blob in kept.children.blobs:
            if not await _may_look(looks):
                return False
            is_public = bool(self._content.public([blob.digest]))
            if not is_public and not await self._is_here(target, blob.digest):
                return False
        for child in kept.children.manifests:
            if depth == _MAX_DEPTH or not await _may_look(looks):
                return False
            if await self._is_here(target, child.digest):
                await self.take_in(target, child.digest, CacheDirective.ANY)
                below = await self._kept(target, child.digest)
                if below is not None and await self._is_whole(
                    target, below, looks, depth=depth + 1
                ):
                    return True
        return not kept.children.manifests

    async def _is_here(self, target: Target, digest: Digest) -> bool:
        """Return True if content can be served here and now under this name.

        That is, if it is held and linked, or a fallback directory lists it for the repository.
        """
        if await self._content.holds(digest) and await self._content.linked(target, digest):
            return True
        return await have(self._sources[target.upstream].fallbacks, target, digest)

    def _refuse_asking(self, target: Target, ref: str, asked: CacheDirective) -> None:
        if self.is_offline(target):
            raise ManifestUnknown(f"{target} {ref} is not held, and this is offline")
        if asked is CacheDirective.ONLY_IF_CACHED:
            raise NotHeld(f"{target} {ref} is not held")

    async def _refuse_overspending(self, target: Target, ref: str) -> None:
        """Ask with an empty rate limit only once a HEAD, which is free, says it is filled again."""
        budget = self._sources[target.upstream].upstream.budget
        if budget.is_empty:
            await self._sources[target.upstream].upstream.head_manifest(target.repo, ref)
        if budget.is_empty:
            raise TooManyRequests(
                f"{target.upstream}: the rate limit of {budget.limit} pulls is used up",
                retry_after=max(SHORTEST_REFILL, budget.refill),
            )


async def _may_look(looks: Iterator[int]) -> bool:
    """Return False after too many looks; now and then, let the loop turn first."""
    look = next(looks)
    if look % _TURN == _TURN - 1:
        await asyncio.sleep(0)
    return look < _MAX_LOOKS


def _proven(digest: Digest, body: bytes) -> ManifestContent | None:
    """Return what a manifest says; None when its bytes are not its digest."""
    return manifests.read(body) if matches(digest, body) else None
