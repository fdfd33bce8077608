"""Checks tags without a client request, and fetches new images of chosen tags."""

from contextlib import suppress
from enum import StrEnum
from typing import Final

import structlog
from cachetools import LRUCache

from proxy.core.errors import HeldBack, ManifestUnknown, NotFound, RegistryError
from proxy.core.manifests import INDEX_TYPES
from proxy.core.names import Digest, Image, Tag, Target
from proxy.core.platforms import own_platform, platform_name
from proxy.core.tolerant_json import as_list, read_object
from proxy.repository import Cache
from proxy.runtime.metrics import CacheCounters
from proxy.services.inventory import State, weigh
from proxy.services.pull import Platforms, Puller, PullOptions
from proxy.services.tag_queue import TagQueue
from proxy.services.update_rules import UpdateRules

FETCHES: Final = 2
"""Images that are fetched at the same time; few, because clients come first."""

_MAX_KNOWN: Final = 50_000

log = structlog.get_logger(__name__)


class CheckResult(StrEnum):
    """The outcome of a check."""

    MOVED = "moved"
    """The tag points to another digest than before, or is new here."""
    UNCHANGED = "unchanged"
    FRESH = "fresh"
    """It was checked recently, here or by another replica."""
    GONE = "gone"
    """Upstream has no such tag."""
    HELD_BACK = "held_back"
    """No image of the tag is old enough to be served (``min_age``)."""
    DEFERRED = "deferred"
    """The rest of the rate limit is reserved for clients."""
    FAILED = "failed"
    """Upstream gave no answer."""
    SKIPPED = "skipped"
    """Upstream is offline, or accepts only the credentials of clients."""


class Renewal:
    """Checks tags, and fetches the complete images of chosen ones when they have moved.

    Run ``fetch_forever`` as a task.
    """

    def __init__(
        self, cache: Cache, puller: Puller, rules: UpdateRules, counters: CacheCounters
    ) -> None:
        self._tags, self._manifests = cache.tags, cache.manifests
        cool_downs = cache.tags.cool_downs
        self._content, self._sources = cool_downs.content, cool_downs.sources
        self._puller = puller
        self._rules = rules
        self._counters = counters
        self._fetches = TagQueue(self._fetch, concurrency=FETCHES, pause=0.0)
        self._kept: LRUCache[tuple[Target, Tag], Digest] = LRUCache(_MAX_KNOWN)
        """The digests that were complete for chosen tags. An image that is evicted later is not
        fetched again: in a cache that is too small, that would never end."""
        self._reported: LRUCache[str, str] = LRUCache(_MAX_KNOWN)

    async def fetch_forever(self) -> None:
        """Fetch images until cancelled."""
        await self._fetches.run()

    async def check(self, target: Target, tag: Tag, max_age: float = 0.0) -> CheckResult:
        """Check a tag, and queue its image to be fetched if it is chosen and not held yet.

        A check by this or another replica counts for ``max_age`` seconds. Raises nothing.
        """
        try:
            found = await self._check(target, tag, max_age)
        except HeldBack:
            return CheckResult.HELD_BACK
        except NotFound:
            return CheckResult.GONE
        except RegistryError as error:
            if (source := self._sources.get(target.upstream)) is not None:
                source.upstream.failures.report(error, "nothing: this was a check ahead of clients")
            return CheckResult.FAILED
        if found in (CheckResult.MOVED, CheckResult.UNCHANGED, CheckResult.FRESH):
            await self._want(target, tag)
        return found

    async def is_wanted(self, target: Target, tag: Tag) -> bool:
        """Return True for a tag that is known here, or chosen."""
        if self._rules.of(target, tag) is not None:
            return True
        return await self._content.tags.get(target, tag) is not None

    async def _check(self, target: Target, tag: Tag, max_age: float) -> CheckResult:
        """Check a tag. Raises ``RegistryError``."""
        source = self._sources[target.upstream]
        if source.rule.offline or source.callers is not None:
            return CheckResult.SKIPPED
        record = await self._content.tags.get(target, tag)
        if record is not None and 0 <= self._content.clock() - record.checked_at < max_age:
            return CheckResult.FRESH
        if max_age and source.is_scarce:
            return CheckResult.DEFERRED
        found = await self._tags.refresh(target, tag, max_age)
        if not found.is_recorded:
            return CheckResult.DEFERRED
        if found.before == found.now:
            return CheckResult.UNCHANGED
        log.info("a tag moved", image=f"{target}:{tag}", before=found.before, digest=found.now)
        return CheckResult.MOVED

    async def _want(self, target: Target, tag: Tag) -> None:
        """Queue a chosen image to be fetched; if the queue is full, the next check tries again."""
        if self._rules.of(target, tag) is None:
            return
        with suppress(RegistryError):
            digest = await self._served(target, tag)
            if digest is not None and self._kept.get((target, tag)) != digest:
                self._fetches.add([(target, tag)])

    async def _served(self, target: Target, tag: Tag) -> Digest | None:
        """Return the digest that clients get for a tag, None if unknown. Raises ``HeldBack``."""
        record = await self._content.tags.get(target, tag)
        if record is None:
            return None
        return (await self._tags.cool_downs.served(target, tag, record)).digest

    async def _fetch(self, target: Target, tag: Tag) -> None:
        """Fetch the image that clients get for a chosen tag; count and log the outcome."""
        image = f"{target}:{tag}"
        try:
            fetched = await self._fetch_whole(target, tag)
        except RegistryError as error:
            self._counters.warm_failures += 1
            if self._reported.get(image) != error.message:
                self._reported[image] = error.message
                reason = error.message
                log.warning("an image was not fetched ahead of clients", image=image, reason=reason)
            return
        if fetched is not None:
            self._counters.warmed_images += 1
            log.info("an image was fetched ahead of clients", image=image, digest=fetched)

    async def _fetch_whole(self, target: Target, tag: Tag) -> Digest | None:
        """Fetch the image that clients get for a chosen tag; return its digest, None if not needed.

        Raises ``RegistryError`` if the image is not complete then.
        """
        options, digest = self._rules.of(target, tag), await self._served(target, tag)
        if options is None or digest is None:
            return None
        is_first = (target, tag) not in self._kept
        is_held = is_first and await self._manifests.is_whole(target, digest)
        if not is_held:
            platforms = options.platforms or await self._former(target, tag, digest)
            wanted = PullOptions(platforms, options.with_referrers)
            pulled = await self._puller.outcome(Image(target, None, digest), wanted)
            if pulled.problems:
                raise ManifestUnknown(pulled.problems[0])
        self._kept[target, tag] = digest
        return None if is_held else digest

    async def _former(self, target: Target, tag: Tag, digest: Digest) -> Platforms:
        """Return the held platforms of the previous index of a tag."""
        for entry in reversed(await self._content.tags.history(target, tag)):
            if entry.digest != digest and (names := await self._held_platforms(entry.digest)):
                return Platforms(names)
        return Platforms((own_platform(),))

    async def _held_platforms(self, digest: Digest) -> tuple[str, ...]:
        """Return the platforms of an index whose images are complete; none for an image."""
        record = await self._content.record(digest)
        if record is None or record.media_type not in INDEX_TYPES:
            return ()
        body = await self._content.read(digest) or b""
        names = []
        for entry in as_list(read_object(body).get("manifests")):
            if not isinstance(entry, dict):
                continue
            name, child = platform_name(entry.get("platform")), Digest(str(entry.get("digest")))
            if name in ("any", "unknown/unknown"):
                continue
            if (await weigh(self._content, child)).state is State.WHOLE:
                names.append(name)
        return tuple(dict.fromkeys(names))
