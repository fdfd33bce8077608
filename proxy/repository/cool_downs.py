"""Holds tags that moved recently, and digests that only such tags name.

``core.cool_down`` decides by the history of a tag. If that is not sufficient, because the tag was
never seen with an older image, the creation time in the image decides.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import structlog
from cachetools import LRUCache

from proxy.content.content import Content
from proxy.core import cool_down
from proxy.core.cool_down import CoolDown, FirstSight, show_time
from proxy.core.creation import Claim, read_claim, read_created
from proxy.core.errors import HeldBack, NotFound, RegistryError
from proxy.core.names import Digest, Tag, Target
from proxy.core.policy import CacheDirective
from proxy.core.records import HISTORY_LIMIT, TagHistoryEntry, TagRecord
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origin
from proxy.repository.reading import read_blob
from proxy.repository.small_blobs import SmallBlobs
from proxy.runtime.executors import in_thread_if_large

MAX_TAGS: Final = 2000
"""Tags of a repository whose history is searched for a digest."""

_MAX_CONFIG: Final = 4 * 1024 * 1024
_MAX_KNOWN: Final = 50_000
_MAX_DEPTH: Final = 3
_MAX_PARENTS: Final = 32

log = structlog.get_logger(__name__)


class Served(NamedTuple):
    """The digest to serve for a tag, and the end of the hold of a younger one (Unix seconds)."""

    digest: Digest
    held_until: float | None = None

    def earlier(self, history: Sequence[TagHistoryEntry]) -> list[Digest]:
        """Return the digests of a history, the latest first, without held ones."""
        digests = list(dict.fromkeys(entry.digest for entry in reversed(history)))
        return digests if self.held_until is None else digests[digests.index(self.digest) :]


class CoolDowns:
    """Decides which digest of a tag is served, and which digests are served by themselves."""

    def __init__(
        self,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        manifests: Manifests,
        small: SmallBlobs,
    ) -> None:
        self.content: Final = content
        self.sources: Final = sources
        self._manifests = manifests
        self._small = small
        self._clock = content.clock
        self._allowed: LRUCache[tuple[Target, str], tuple[CoolDown, Digest]] = LRUCache(_MAX_KNOWN)
        """Tags and digests with the digest that may be served, and the rule that allowed it."""
        content.tags.on_history.append(self._allowed.clear)
        self._created: LRUCache[Digest, Claim] = LRUCache(_MAX_KNOWN)
        self._logged: LRUCache[tuple[Target, Tag], Digest] = LRUCache(_MAX_KNOWN)

    def is_allowed(self, target: Target, ref: str, digest: Digest) -> bool:
        """Return True if ``ref``, a tag or the digest itself, is known to be served as ``digest``.

        False means that ``served`` or ``check`` decides.
        """
        rules = self.sources[target.upstream].tag_rules
        tag = None if ref == digest else Tag(ref)
        if tag is not None and rules.as_of(target, tag) is not None:
            return False
        rule = rules.cool_down(target, tag)
        return rule is None or self._allowed.get((target, ref)) == (rule, digest)

    async def served(self, target: Target, tag: Tag, record: TagRecord) -> Served:
        """Return the digest to serve for a tag that points to ``record`` upstream.

        Raises ``HeldBack`` if it was never seen with an image that is old enough.
        """
        digest = record.descriptor.digest
        rule = self.sources[target.upstream].tag_rules.cool_down(target, tag)
        if rule is None or self._allowed.get((target, tag)) == (rule, digest):
            return Served(digest)
        history = await self._history(target, tag, record)
        origin = self.sources[target.upstream]
        choice = cool_down.choose(history, self._clock(), rule, origin.seconds_trusted(tag))
        if choice.digest is None:
            choice = await self._first_sight(target, history, rule, choice)
        if choice.digest is None:
            self._report(target, tag, digest, choice.held_until)
            raise _held(f"{target}:{tag}", choice.held_until)
        if choice.held_until is None:
            self._allowed[target, tag] = rule, digest
        else:
            self._report(target, tag, digest, choice.held_until)
        if (general := origin.tag_rules.cool_down(target, None)) is not None:
            self._allowed[target, choice.digest] = general, choice.digest
        return Served(choice.digest, choice.held_until)

    async def foreseen(self, target: Target, tag: Tag, record: TagRecord) -> Served | None:
        """Return the result of ``served`` without a request.

        None if the creation time of an image decides, and is not known yet. Raises
        ``HeldBack``.
        """
        origin = self.sources[target.upstream]
        rule = origin.tag_rules.cool_down(target, tag)
        if rule is not None:
            history = await self._history(target, tag, record)
            choice = cool_down.choose(history, self._clock(), rule, origin.seconds_trusted(tag))
            first = history[0]
            needs_image = rule.first_sight is FirstSight.CREATED or (
                rule.first_sight is FirstSight.DENY and first.first_seen <= 0
            )
            if choice.digest is None and needs_image and first.digest not in self._created:
                return None
        return await self.served(target, tag, record)

    async def held_until(self, target: Target, tag: Tag, record: TagRecord) -> float | None:
        """Return the time until which a tag is held (Unix seconds), None if it is not."""
        return (await self.shown(target, tag, record)).held_until

    async def shown(self, target: Target, tag: Tag, record: TagRecord) -> Served:
        """Return what ``served`` returns; for a tag that is refused, the digest that is held.

        Raises ``RegistryError`` if the image is needed, and its registry fails.
        """
        try:
            return await self.served(target, tag, record)
        except HeldBack as error:
            return Served(record.descriptor.digest, error.until)

    async def answers(self, target: Target, tag: Tag, record: TagRecord) -> Sequence[Digest]:
        """Return the digests that clients may get for a tag now, found without a request.

        There are two if the creation time of an image decides between them, and is not known yet.
        """
        newest = record.descriptor.digest
        try:
            if self.is_allowed(target, tag, newest):
                return (newest,)
            history = await self._history(target, tag, record)
            moment = self.sources[target.upstream].tag_rules.as_of(target, tag)
            if moment is not None:
                return (cool_down.at(history, moment) or newest,)
            served = await self.foreseen(target, tag, record)
        except RegistryError:  # no image is old enough, or its upstream has been removed
            return (newest,)
        if served is not None:
            return (served.digest,)
        return tuple(dict.fromkeys((history[0].digest, newest)))

    async def check(self, target: Target, digest: Digest) -> None:
        """Return if a digest may be served by itself. Raises ``HeldBack`` or ``RegistryError``.

        It may if a tag serves it or has served it, alone or in an index. If all tags that name it
        hold it, it is held. A digest without a tag is treated like the first image of a tag.
        """
        rule = self.sources[target.upstream].tag_rules.cool_down(target, None)
        if rule is None or self._allowed.get((target, digest)) == (rule, digest):
            return
        if (until := await self._held(target, digest, rule, 0)) is not None:
            raise _held(f"{target}@{digest}", until)
        self._allowed[target, digest] = rule, digest

    async def _held(
        self, target: Target, digest: Digest, rule: CoolDown, depth: int
    ) -> float | None:
        """Return the time until which a digest is held (``inf``: unknown), None if it is not."""
        holds = await self._holds_of_tags(target, digest)
        if depth < _MAX_DEPTH:
            for parent in (await self.content.graph.parents(digest))[:_MAX_PARENTS]:
                if await self.content.links.has(target, parent):
                    holds.append(await self._held(target, parent, rule, depth + 1))
        if holds:
            return None if None in holds else min(one for one in holds if one is not None)
        if rule.first_sight is FirstSight.ALLOW:
            return None
        claim = await self._claim(target, digest)
        if claim is not None and claim.is_attached and not claim.images:
            return None
        if rule.first_sight is FirstSight.DENY or claim is None or claim.created is None:
            return math.inf
        until = claim.created + rule.min_age
        return until if until > self._clock() else None

    async def _holds_of_tags(self, target: Target, digest: Digest) -> list[float | None]:
        """Return the end of the hold for each tag that has pointed to a digest."""
        holds: list[float | None] = []
        origin = self.sources[target.upstream]
        for tag in (await self.content.tags.of(target))[:MAX_TAGS]:
            record = await self.content.tags.get(target, tag)
            if record is None:
                continue
            history = await self._history(target, tag, record)
            last = max((at for at, one in enumerate(history) if one.digest == digest), default=None)
            if last is None:
                continue
            rule = origin.tag_rules.cool_down(target, tag)
            if rule is None:
                return [None]
            past = history[: last + 1]
            end = self._clock() if last + 1 == len(history) else history[last + 1].first_seen
            choice = cool_down.choose(past, end, rule, origin.seconds_trusted(tag))
            if choice.digest is None:
                choice = await self._first_sight(target, past, rule, choice)
            until = choice.held_until if last + 1 == len(history) else math.inf
            holds.append(None if choice.digest == digest else until)
        return holds

    async def _history(
        self, target: Target, tag: Tag, record: TagRecord
    ) -> tuple[TagHistoryEntry, ...]:
        """Return a tag's history up to ``record``, which may not be in it yet."""
        history = await self.content.tags.history(target, tag)
        digest = record.descriptor.digest
        if history and history[-1].digest == digest:
            return history
        return (*history, TagHistoryEntry(digest, record.checked_at, record.checked_at))

    async def _first_sight(
        self,
        target: Target,
        history: Sequence[TagHistoryEntry],
        rule: CoolDown,
        choice: cool_down.Choice,
    ) -> cool_down.Choice:
        """Judge the first image of a tag, if the history still has it."""
        first, newest = history[0], history[-1]
        if len(history) >= HISTORY_LIMIT:
            return choice
        if rule.first_sight is FirstSight.ALLOW:
            until = 0.0
        elif rule.first_sight is FirstSight.DENY and first.first_seen > 0:
            return choice
        else:
            claim = await self._claim(target, first.digest)
            if claim is None or claim.created is None:
                return choice
            until = claim.created + rule.min_age
        if until <= self._clock():
            held = None if first.digest == newest.digest else choice.held_until
            return cool_down.Choice(first.digest, held)
        if first.digest != newest.digest or choice.held_until is None:
            return choice
        return cool_down.Choice(None, min(until, choice.held_until))

    async def _claim(self, target: Target, digest: Digest, depth: int = 0) -> Claim | None:
        """Return the claimed creation time of an image, from its manifest and configuration.

        None if upstream does not have it. An index is as young as its youngest image. Raises
        ``RegistryError``.
        """
        if (known := self._created.get(digest)) is not None:
            return known
        try:
            manifest = await self._manifests.get(target, digest, CacheDirective.ANY)
            claim = await in_thread_if_large(len(manifest.body), lambda: read_claim(manifest.body))
            times: list[float | None] = []
            if claim.images and depth < _MAX_DEPTH:
                for image in claim.images:
                    below = await self._claim(target, image, depth + 1)
                    times += [] if below is None else [below.created]
            elif claim.config is not None and claim.config.size <= _MAX_CONFIG:
                body = await read_blob(self._small, target, claim.config)
                times = [await in_thread_if_large(len(body), lambda: read_created(body))]
        except NotFound:
            return None
        known_times = [one for one in times if one is not None]
        created = max(known_times) if known_times else claim.created
        found = Claim(created, claim.config, claim.images, claim.is_attached)
        self._created[digest] = found
        return found

    def _report(self, target: Target, tag: Tag, digest: Digest, until: float | None) -> None:
        """Log once that a tag is held."""
        if self._logged.get((target, tag)) != digest:
            self._logged[target, tag] = digest
            end = None if until is None else show_time(until)
            log.info("tag held", target=str(target), tag=tag, digest=digest, until=end)


def _held(name: str, until: float | None) -> HeldBack:
    if until is None or until == math.inf:
        reason = "held: no tag has had it for long enough, and it has no creation time"
        return HeldBack(f"{name} is {reason}", until=None)
    return HeldBack(f"{name} is held until {show_time(until)}: it is too young", until=until)
