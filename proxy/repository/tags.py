"""Resolves tags: from the last check, by a new check, or from the last good copy."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, assert_never

import structlog

from proxy.content.content import Content
from proxy.core import policy
from proxy.core.errors import (
    ManifestUnknown,
    NotFound,
    NotHeld,
    RegistryError,
    UpstreamFailure,
    UpstreamTimeout,
)
from proxy.core.names import Digest, Tag, Target
from proxy.core.policy import Action, CacheDirective, Rule
from proxy.core.records import TagRecord
from proxy.repository.cool_downs import CoolDowns, Served
from proxy.repository.history import History
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origin
from proxy.repository.results import Described, Forward, Manifest
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight

FAILED_WARNING: Final = "stale: upstream failed, this is the last good copy"
PARTIAL_WARNING: Final = "stale: upstream failed, and not all of this image is held here"
FALLBACK_WARNING: Final = "stale: upstream failed, this is the copy in a fallback directory"
SCARCE_WARNING: Final = "stale: there is a newer image, and pulls are nearly used up"
DELETED_WARNING: Final = "kept: upstream no longer has this tag"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class _Pointed:
    """Where a tag points, the outcome to report, and for how many seconds that stays fresh.

    ``served`` is the digest to serve: a younger one in ``record`` may be held back.
    """

    record: TagRecord
    served: Served
    outcome: Outcome
    fresh: float
    forward: Forward | None = None

    @property
    def is_held_back(self) -> bool:
        """The tag points to another digest upstream."""
        return self.served.digest != self.record.descriptor.digest


@dataclass(frozen=True, slots=True)
class Refreshed:
    """Where a tag pointed (None: unknown) and points now, and whether that was recorded.

    ``served`` is what clients get: ``now`` may be held back.
    """

    before: Digest | None
    now: Digest
    is_recorded: bool
    served: Digest


class Tags:
    """The cache of tags."""

    def __init__(
        self,
        manifests: Manifests,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        cool_downs: CoolDowns,
        patience: float,
    ) -> None:
        """Use a held copy if a check takes longer than ``patience`` seconds."""
        self._manifests = manifests
        self._content = content
        self._records = content.tags
        self._sources = sources
        self._clock = content.clock
        self.cool_downs: Final = cool_downs
        self.past: Final = History(content, sources)
        self._patience = patience
        self._checks: SingleFlight[TagRecord] = SingleFlight("check tag")
        self._refreshes: SingleFlight[None] = SingleFlight("refresh tag")

    async def close(self) -> None:
        """Cancel running checks."""
        await self._refreshes.close()
        await self._checks.close()

    async def get(self, target: Target, tag: Tag, directive: CacheDirective) -> Manifest:
        """Return the manifest that a tag points to. Raises ``RegistryError``."""
        if (digest := await self.past.configured(target, tag)) is not None:
            return await self._manifests.get(target, digest, directive)
        found = await self._resolve(target, tag, directive)
        if found is None:
            try:
                return await self._fetch(target, tag, directive)
            except UpstreamFailure as error:
                return await self._from_fallback(target, tag, error)
        if isinstance(found, Manifest):
            return found
        try:
            return await self._image(target, tag, found, directive)
        except RegistryError as error:
            if self._rule(target, tag).offline:
                raise
            return await self._serve_stale(target, tag, found.record, error)

    async def _fetch(self, target: Target, tag: Tag, directive: CacheDirective) -> Manifest:
        """Fetch a tag's manifest; return it, or an older one while it is held back."""
        manifest = await self._manifests.fetch(target, tag)
        record = TagRecord(manifest.descriptor, self._clock())
        served = await self.cool_downs.served(target, tag, record)
        if served.digest != manifest.descriptor.digest:
            manifest = await self._manifests.get(target, served.digest, directive)
        return replace(manifest, held_until=served.held_until)

    async def _image(
        self, target: Target, tag: Tag, found: _Pointed, directive: CacheDirective
    ) -> Manifest:
        """Return a resolved tag's manifest, by tag if upstream no longer has the digest."""
        try:
            manifest = await self._manifests.get(target, found.served.digest, directive)
        except ManifestUnknown:
            if self._rule(target, tag).offline or found.is_held_back:
                raise
            return await self._fetch(target, tag, directive)
        manifest = replace(manifest, held_until=found.served.held_until)
        if manifest.outcome is not Outcome.HIT:
            return replace(manifest, forward=found.forward)
        return replace(manifest, outcome=found.outcome, fresh=found.fresh, forward=found.forward)

    async def head(self, target: Target, tag: Tag, directive: CacheDirective) -> Described:
        """Return the descriptor of a tag; upstream gets no GET. Raises ``RegistryError``."""
        if (digest := await self.past.configured(target, tag)) is not None:
            return await self._manifests.head(target, digest, directive)
        found = await self._resolve(target, tag, directive)
        if found is None:
            try:
                # Some clients never send a GET for a tag, so a HEAD records it too.
                known = await self._check(target, tag, None)
                served = await self.cool_downs.served(target, tag, known)
                found = _Pointed(known, served, Outcome.MISS, self._rule(target, tag).tag_ttl)
            except UpstreamFailure as error:
                found = await self._from_fallback(target, tag, error)
        if isinstance(found, Manifest):
            held = found.held_until
            return Described(
                found.descriptor, found.outcome, found.warning, None, found.forward, held
            )
        return await self._described(target, tag, found, directive)

    async def _described(
        self, target: Target, tag: Tag, found: _Pointed, directive: CacheDirective
    ) -> Described:
        descriptor, served = found.record.descriptor, found.served
        self._content.touch(served.digest)
        if found.is_held_back:
            descriptor = (await self._manifests.head(target, served.digest, directive)).descriptor
        elif self._rule(target, tag).offline or directive is CacheDirective.ONLY_IF_CACHED:
            descriptor = (
                await self._manifests.get(target, descriptor.digest, directive)
            ).descriptor
        held = served.held_until
        return Described(descriptor, found.outcome, None, found.fresh, found.forward, held)

    async def refresh(self, target: Target, tag: Tag) -> Refreshed:
        """Ask upstream now where a tag points. Raises ``RegistryError``.

        The answer is not recorded if the rate limit leaves no pull for a new image.
        """
        await self._manifests.absences.forget(target, tag)
        before = await self._records.get(target, tag)
        now = await self._check(target, tag, before)
        recorded = await self._records.get(target, tag)
        digest = now.descriptor.digest
        is_recorded = recorded is not None and recorded.descriptor.digest == digest
        former = None if before is None else before.descriptor.digest
        served = await self.cool_downs.served(target, tag, now)
        return Refreshed(former, digest, is_recorded, served.digest)

    def seconds_fresh(self, target: Target, tag: Tag, record: TagRecord) -> float | None:
        """Return for how many seconds a record is served without a check; None if it is not."""
        rule = self._rule(target, tag)
        now = self._clock()
        if rule.offline or policy.decide(record.checked_at, rule, now) is not Action.SERVE:
            return None
        if not self.cool_downs.is_allowed(target, tag, record.descriptor.digest):
            return None
        return policy.seconds_fresh(record.checked_at, rule, now)

    async def _resolve(
        self, target: Target, tag: Tag, directive: CacheDirective
    ) -> _Pointed | Manifest | None:
        """Return where the tag points, a stale manifest if upstream fails, or None if unknown."""
        if directive is CacheDirective.REVALIDATE:
            await self._manifests.absences.forget(target, tag)
        record = await self._known(target, tag, directive)
        rule = self._rule(target, tag)
        checked_at = None if record is None else record.checked_at
        action = policy.decide(checked_at, rule, self._clock(), directive)
        if record is None or action is Action.MISS:
            if rule.offline:
                raise ManifestUnknown(f"{target}:{tag} is not held, and this is offline")
            if directive is CacheDirective.ONLY_IF_CACHED:
                raise NotHeld(f"{target}:{tag} is not held")
            return None
        fresh = policy.seconds_fresh(record.checked_at, rule, self._clock())
        match action:
            case Action.SERVE:
                served = await self.cool_downs.served(target, tag, record)
                return _Pointed(record, served, Outcome.HIT, fresh)
            case Action.SERVE_THEN_CHECK:
                self._refreshes.start((target, tag), lambda: self._refresh(target, tag))
                served = await self.cool_downs.served(target, tag, record)
                return _Pointed(record, served, Outcome.STALE, fresh)
            case Action.CHECK:
                try:
                    checked = await self._check_in_time(target, tag, record)
                except RegistryError as error:
                    return await self._serve_stale(target, tag, record, error)
                if (copy := await self._copy_if_scarce(target, tag, record, checked)) is not None:
                    return replace(copy, forward=Forward(200))
                served = await self.cool_downs.served(target, tag, checked)
                return _Pointed(checked, served, Outcome.REVALIDATED, rule.tag_ttl, Forward(200))
            case _:
                assert_never(action)

    async def _known(self, target: Target, tag: Tag, directive: CacheDirective) -> TagRecord | None:
        """Return where a tag points; offline, a fallback directory is asked too."""
        record = await self._records.get(target, tag)
        is_local = directive is CacheDirective.ONLY_IF_CACHED or not self._rule(target, tag).offline
        if record is None and not is_local:
            return await self._tag_in_fallback(target, tag)
        return record

    async def _tag_in_fallback(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return and record where a tag points in a fallback directory; None if none has it.

        The record counts as never checked: upstream is asked as soon as it can be.
        """
        for fallback in self._sources[target.upstream].fallbacks:
            descriptor = await fallback.tag(target, tag)
            if descriptor is not None:
                record = TagRecord(descriptor, 0.0)
                await self._records.set(target, tag, record)
                return record
        return None

    async def _from_fallback(self, target: Target, tag: Tag, error: UpstreamFailure) -> Manifest:
        """Return an unknown tag's image from a fallback directory, or raise ``error``.

        Only if the image can be served in full: some clients ask no other mirror for its layers.
        """
        record = await self._tag_in_fallback(target, tag)
        if record is None:
            raise error
        digest = (await self.cool_downs.served(target, tag, record)).digest
        await self._manifests.copy_from_fallback(target, digest, CacheDirective.ANY)
        copy = await self._manifests.last_good(target, [digest], FALLBACK_WARNING)
        return _instead_of(error, copy)

    async def _check_in_time(self, target: Target, tag: Tag, record: TagRecord) -> TagRecord:
        """Check a tag. If a good copy is held, time out early; the check itself continues."""
        late = UpstreamTimeout(f"{target.upstream} does not confirm {tag} in time")
        may_replace = self._may_replace(target, tag, record, late)
        held = may_replace and await self._manifests.is_whole(target, record.descriptor.digest)
        try:
            async with asyncio.timeout(self._patience if held else None):
                return await self._check(target, tag, record)
        except TimeoutError:
            raise late from None

    async def _check(self, target: Target, tag: Tag, record: TagRecord | None) -> TagRecord:
        """Ask upstream by HEAD where a tag points; concurrent callers share one request.

        ``record`` is the last one, None for an unknown tag.
        """

        async def ask() -> TagRecord:
            try:
                descriptor = await self._manifests.ask(target, tag)
            except NotFound as error:
                if (newer := await self._newer(target, tag, record)) is not None:
                    return newer
                if record is not None and not self._may_replace(target, tag, record, error):
                    await self._records.set(target, tag, None)
                raise
            checked = TagRecord(descriptor, self._clock())
            if (newer := await self._newer(target, tag, record)) is not None:
                return newer  # a GET was faster
            if await self._copy_if_scarce(target, tag, record, checked) is None:
                await self._records.set(target, tag, checked)
            return checked

        return await self._checks.do((target, tag), ask)

    async def _newer(self, target: Target, tag: Tag, record: TagRecord | None) -> TagRecord | None:
        """Return the tag's record if another request replaced ``record`` meanwhile."""
        current = await self._records.get(target, tag)
        return current if current is not None and current != record else None

    def _may_replace(
        self, target: Target, tag: Tag, record: TagRecord, error: RegistryError
    ) -> bool:
        """Return True if the last good copy may be served instead of ``error``."""
        rule = self._rule(target, tag)
        return policy.on_failure(record.checked_at, rule, self._clock(), error) is Action.SERVE

    async def _refresh(self, target: Target, tag: Tag) -> None:
        """Check a tag in the background, and fetch a new image's manifest."""
        record = await self._records.get(target, tag)
        if record is None:
            return
        try:
            checked = await self._check(target, tag, record)
            if await self._copy_if_scarce(target, tag, record, checked) is None:
                served = await self.cool_downs.served(target, tag, checked)
                await self._manifests.get(target, served.digest, CacheDirective.ANY)
        except UpstreamFailure as error:
            failures = self._sources[target.upstream].upstream.failures
            failures.report(error, "the copy that is held")
        except RegistryError as error:
            log.info("refresh failed", target=str(target), tag=tag, error=error.message)

    async def _copy_if_scarce(
        self, target: Target, tag: Tag, record: TagRecord | None, checked: TagRecord
    ) -> Manifest | None:
        """Return the held copy instead of a new image if few pulls are left of the rate limit.

        These are reserved for images of which no copy is held.
        """
        if record is None or not self._sources[target.upstream].is_scarce:
            return None
        if await self._manifests.is_whole(target, checked.descriptor.digest):
            return None
        last = (await self.cool_downs.served(target, tag, record)).digest
        return await self._manifests.last_good(target, [last], SCARCE_WARNING)

    async def _serve_stale(
        self, target: Target, tag: Tag, record: TagRecord, error: RegistryError
    ) -> Manifest:
        """Return a held copy because upstream failed, or raise ``error``.

        In this order:

        1. The image that the tag names, held in full: no upstream is needed.
        2. The same image, its manifest held and some layers not. Nodes that have the layers need
           only the manifest, and an older image would be a downgrade. Others get the missing layers
           from upstream, through this cache or directly. Offline nothing reaches this method:
           Podman and CRI-O choose a mirror by the manifest and ask nowhere else for its layers.
        3. An older image of the tag, held in full, if the manifest itself is not held.
        """
        is_deleted = isinstance(error, NotFound)
        if not self._may_replace(target, tag, record, error):
            if is_deleted and await self._newer(target, tag, record) is None:
                await self._records.set(target, tag, None)
            raise error
        warning = DELETED_WARNING if is_deleted else FAILED_WARNING
        partial = DELETED_WARNING if is_deleted else PARTIAL_WARNING
        served = await self.cool_downs.served(target, tag, record)
        current = served.digest
        copy = await self._manifests.last_good(target, [current], warning)
        if copy is None:
            copy = await self._manifests.held(target, current, partial)
        if copy is None:
            history = await self._records.history(target, tag)
            earlier = dict.fromkeys(entry.digest for entry in reversed(history))
            if served.held_until is not None:  # what is younger must not be served
                earlier = dict.fromkeys(list(earlier)[list(earlier).index(current) :])
            copy = await self._manifests.last_good(target, earlier, warning)
        copy = _instead_of(error, copy)
        return replace(copy, held_until=served.held_until)

    def _rule(self, target: Target, tag: Tag) -> Rule:
        return self._sources[target.upstream].rule_for(tag)


def _instead_of(error: RegistryError, copy: Manifest | None) -> Manifest:
    """Return the copy that replaces upstream's answer; raise ``error`` if there is none."""
    if copy is None:
        raise error
    return replace(copy, forward=Forward(error.upstream_status, error))
