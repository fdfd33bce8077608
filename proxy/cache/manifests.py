"""Answers for manifests: decide, check, fetch, or stand in with the last good copy."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, NamedTuple, assert_never

import structlog
from cachetools import LRUCache

from proxy import manifests, policy
from proxy.cache.answers import Described, Manifest
from proxy.cache.holdings import Holdings
from proxy.cache.sources import Source
from proxy.errors import Absent, ContentMismatch, ManifestUnknown, RegistryError
from proxy.facts import Facts
from proxy.manifests import Children
from proxy.metrics import Outcome
from proxy.names import Digest, Tag, Target, is_digest, matches, sha256
from proxy.once import Once
from proxy.policy import Action
from proxy.records import Clock, Descriptor, TagRecord

STALE_WARNING: Final = "stale: upstream failed, this is the last good copy"
DESCRIBED_SECONDS: Final = 3600.0
_MAX_DEPTH: Final = 4
_SIZES: Final = 200_000

log = structlog.get_logger(__name__)


class _Kept(NamedTuple):
    descriptor: Descriptor
    body: bytes
    children: Children


class Manifests:
    """The cache of manifests and of where tags point."""

    def __init__(
        self,
        holdings: Holdings,
        sources: Mapping[str, Source],
        *,
        clock: Clock,
        ram_bytes: int,
    ) -> None:
        self._holdings = holdings
        self._index = holdings.index
        self._sources = sources
        self._clock = clock
        self._ram: LRUCache[Digest, _Kept] = LRUCache(
            ram_bytes, getsizeof=lambda kept: len(kept.body)
        )
        self._absent: Facts[str] = Facts()
        self._described: Facts[Descriptor] = Facts()
        self._fetches: Once[Manifest] = Once("fetch manifest")
        self._checks: Once[TagRecord] = Once("check tag")
        self._refreshes: Once[None] = Once("refresh tag")
        self.sizes: Final[LRUCache[Digest, int]] = LRUCache(_SIZES)
        """Bytes of blobs, as the manifests seen so far say."""

    async def close(self) -> None:
        """Cancel what runs."""
        for running in (self._refreshes, self._checks, self._fetches):
            await running.close()

    async def get(self, target: Target, ref: str) -> Manifest:
        """Return a manifest. Raises ``RegistryError``."""
        if is_digest(ref):
            return await self._by_digest(target, Digest(ref))
        return await self._by_tag(target, Tag(ref))

    async def head(self, target: Target, ref: str) -> Described:
        """Return what a manifest is, asking upstream for no body. Raises ``RegistryError``."""
        if is_digest(ref):
            return await self._head_digest(target, Digest(ref))
        tag = Tag(ref)
        record, outcome = await self._current(target, tag)
        if record is None:
            return await self._head_unknown_tag(target, tag)
        if isinstance(record, Manifest):
            return Described(record.descriptor, record.outcome, record.warning)
        if self._is_offline(target):
            held = await self._by_digest(target, record.descriptor.digest)
            return Described(held.descriptor, outcome)
        return Described(record.descriptor, outcome)

    async def _by_tag(self, target: Target, tag: Tag) -> Manifest:
        record, outcome = await self._current(target, tag)
        if record is None:
            return await self._fetched(target, tag)
        if isinstance(record, Manifest):
            return record
        try:
            manifest = await self._by_digest(target, record.descriptor.digest)
        except ManifestUnknown:
            if self._is_offline(target):
                raise
            return await self._fetched(target, tag)
        except RegistryError as error:
            return await self._stand_in(target, tag, record, error)
        if manifest.outcome is Outcome.HIT:
            return replace(manifest, outcome=outcome)
        return manifest

    async def _current(
        self, target: Target, tag: Tag
    ) -> tuple[TagRecord | Manifest | None, Outcome]:
        """Return where the tag points, a stand-in when upstream fails, or None when unknown."""
        record = await self._index.tag(target, tag)
        rule = self._sources[target.upstream].rule
        action = policy.decide(record, rule, self._clock())
        if record is None or action is Action.MISS:
            return None, Outcome.MISS
        match action:
            case Action.SERVE:
                return record, Outcome.HIT
            case Action.SERVE_THEN_CHECK:
                self._refreshes.start((target, tag), lambda: self._refresh(target, tag))
                return record, Outcome.STALE
            case Action.CHECK:
                try:
                    return await self._check(target, tag), Outcome.REVALIDATED
                except RegistryError as error:
                    return await self._stand_in(target, tag, record, error), Outcome.STALE
            case _:
                assert_never(action)

    async def _stand_in(
        self, target: Target, tag: Tag, record: TagRecord, error: RegistryError
    ) -> Manifest:
        """Return the last good copy whose every part is held, or raise ``error``."""
        rule = self._sources[target.upstream].rule
        if policy.on_failure(record, rule, self._clock(), error) is not Action.SERVE:
            raise error
        history = await self._index.history(target, tag)
        earlier = [sighting.digest for sighting in reversed(history)]
        for digest in dict.fromkeys([record.descriptor.digest, *earlier]):
            kept = await self._kept(digest)
            if kept is not None and await self._whole(kept):
                return Manifest(kept.descriptor, kept.body, Outcome.STALE, STALE_WARNING)
        raise error

    async def _by_digest(self, target: Target, digest: Digest) -> Manifest:
        kept = await self._kept(digest)
        linked = kept is not None and await self._index.linked(target, digest)
        if self._is_offline(target) and (kept is None or not linked or not await self._whole(kept)):
            raise ManifestUnknown(f"{target}@{digest} is not held in full, and this is offline")
        if kept is None:
            return await self._fetched(target, digest)
        if not linked:
            await self._head_upstream(target, digest)
            return Manifest(kept.descriptor, kept.body, Outcome.REVALIDATED)
        return Manifest(kept.descriptor, kept.body, Outcome.HIT)

    async def _head_digest(self, target: Target, digest: Digest) -> Described:
        if self._is_offline(target) or (digest in self._ram or await self._holdings.holds(digest)):
            manifest = await self._by_digest(target, digest)
            return Described(manifest.descriptor, manifest.outcome)
        descriptor = await self._described.get(f"{target} {digest}")
        if descriptor is not None:
            return Described(descriptor, Outcome.HIT)
        descriptor = await self._head_upstream(target, digest)
        return Described(descriptor, Outcome.MISS)

    async def _head_unknown_tag(self, target: Target, tag: Tag) -> Described:
        self._refuse_offline(target, tag)
        descriptor = await self._head_upstream(target, tag)
        await self._index.set_tag(target, tag, TagRecord(descriptor, self._clock()))
        return Described(descriptor, Outcome.MISS)

    async def _head_upstream(self, target: Target, ref: str) -> Descriptor:
        """Ask upstream what ``ref`` is, and remember that the repository holds it."""
        await self._refuse_absent(target, ref)
        try:
            descriptor = await self._sources[target.upstream].upstream.head_manifest(
                target.repo, ref
            )
        except Absent as error:
            await self._learn_absent(target, ref, error)
            raise
        if descriptor is None:
            return (await self._fetched(target, ref)).descriptor
        await self._index.link(target, [descriptor.digest])
        await self._described.learn(f"{target} {descriptor.digest}", descriptor, DESCRIBED_SECONDS)
        return descriptor

    async def _check(self, target: Target, tag: Tag) -> TagRecord:
        """Ask upstream where a known tag points; one question however many ask."""

        async def ask() -> TagRecord:
            try:
                descriptor = await self._head_upstream(target, tag)
            except Absent:
                await self._index.drop_tag(target, tag)
                raise
            record = TagRecord(descriptor, self._clock())
            await self._index.set_tag(target, tag, record)
            return record

        return await self._checks.do((target, tag), ask)

    async def _refresh(self, target: Target, tag: Tag) -> None:
        """Check a tag behind the client's back, and fetch what is new."""
        try:
            record = await self._check(target, tag)
            await self._by_digest(target, record.descriptor.digest)
        except RegistryError as error:
            log.info("refresh failed", target=str(target), tag=tag, error=error.message)

    async def _fetched(self, target: Target, ref: str) -> Manifest:
        """Return a manifest from upstream; one request however many want it."""
        self._refuse_offline(target, ref)
        key = (target, ref)
        joined = self._fetches.is_running(key)
        manifest = await self._fetches.do(key, lambda: self._fetch(target, ref))
        return replace(manifest, outcome=Outcome.JOIN) if joined else manifest

    async def _fetch(self, target: Target, ref: str) -> Manifest:
        await self._refuse_absent(target, ref)
        try:
            fetched = await self._sources[target.upstream].upstream.manifest(target.repo, ref)
        except Absent as error:
            await self._learn_absent(target, ref, error)
            raise
        digest = Digest(ref) if is_digest(ref) else fetched.digest or sha256(fetched.body)
        if not matches(digest, fetched.body):
            self._holdings.counters.mismatches += 1
            raise ContentMismatch(f"{target}: the manifest that came is not {digest}")
        descriptor = Descriptor(fetched.media_type, digest, len(fetched.body))
        kept = self._remember(descriptor, fetched.body)
        await self._holdings.keep(descriptor, fetched.body)
        listed = [child.digest for child in (*kept.children.manifests, *kept.children.blobs)]
        await self._index.link(target, [digest, *listed])
        if not is_digest(ref):
            await self._index.set_tag(target, Tag(ref), TagRecord(descriptor, self._clock()))
        return Manifest(descriptor, fetched.body, Outcome.MISS)

    async def _kept(self, digest: Digest) -> _Kept | None:
        """Return a held manifest, proven anew when it comes from the disk."""
        kept = self._ram.get(digest)
        if kept is not None:
            self._index.touch(digest)
            return kept
        body = await self._holdings.read(digest)
        if body is None:
            return None
        if not matches(digest, body):
            await self._holdings.drop(digest, reason="its bytes have changed")
            return None
        record = await self._index.blob(digest)
        media_type = (record and record.media_type) or manifests.media_type(body)
        return self._remember(Descriptor(media_type, digest, len(body)), body)

    def _remember(self, descriptor: Descriptor, body: bytes) -> _Kept:
        kept = _Kept(descriptor, body, manifests.children(body))
        if len(body) <= self._ram.maxsize:
            self._ram[descriptor.digest] = kept
        for blob in kept.children.blobs:
            self.sizes[blob.digest] = blob.size
        return kept

    async def _whole(self, kept: _Kept, depth: int = 0) -> bool:
        """Tell whether a client could pull this here and now.

        Some choose their mirror by the manifest and then ask nowhere else for its blobs.
        """
        for blob in kept.children.blobs:
            if not await self._holdings.holds(blob.digest):
                return False
        if not kept.children.manifests:
            return True
        for child in kept.children.manifests:
            if depth < _MAX_DEPTH and await self._holdings.holds(child.digest):
                below = await self._kept(child.digest)
                if below is not None and await self._whole(below, depth + 1):
                    return True
        return False

    def _is_offline(self, target: Target) -> bool:
        return self._sources[target.upstream].rule.offline

    def _refuse_offline(self, target: Target, ref: str) -> None:
        if self._is_offline(target):
            raise ManifestUnknown(f"{target} {ref} is not held, and this is offline")

    async def _refuse_absent(self, target: Target, ref: str) -> None:
        message = await self._absent.get(f"{target} {ref}")
        if message is not None:
            raise ManifestUnknown(message)

    async def _learn_absent(self, target: Target, ref: str, error: Absent) -> None:
        ttl = self._sources[target.upstream].rule.negative_ttl
        await self._absent.learn(f"{target} {ref}", error.message, ttl)
