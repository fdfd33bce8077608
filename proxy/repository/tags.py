"""Resolves tags: from the last check, by a new check, or from the last good copy."""

import asyncio
from dataclasses import replace
from typing import Final, assert_never

import structlog

from proxy.core import policy
from proxy.core.errors import (
    ManifestUnknown,
    NotFound,
    NotHeld,
    RegistryError,
    UpstreamFailure,
    UpstreamTimeout,
)
from proxy.core.names import Tag, Target
from proxy.core.policy import NOW, Action, CacheDirective, MaxAge, Rule
from proxy.core.records import TagRecord
from proxy.repository.cool_downs import CoolDowns
from proxy.repository.history import History
from proxy.repository.manifests import Manifests
from proxy.repository.resolved_tags import (
    DELETED_WARNING,
    FAILED_WARNING,
    FALLBACK_WARNING,
    PARTIAL_WARNING,
    SCARCE_WARNING,
    Refreshed,
    ResolvedTag,
    described,
    instead_of,
    require_confirmation,
    tag_in_fallback,
)
from proxy.repository.results import Forward, Manifest, ManifestHead
from proxy.repository.sharing import Check, NoSharing, Sharing, refuse_absent, say_gone
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight

log = structlog.get_logger(__name__)


class Tags:
    """The cache of tags."""

    def __init__(
        self,
        manifests: Manifests,
        cool_downs: CoolDowns,
        *,
        patience: float,
        sharing: Sharing | None = None,
    ) -> None:
        """Use a held copy if a check takes longer than ``patience`` seconds.

        ``sharing`` None: there are no other replicas.
        """
        self._manifests = manifests
        content, sources = cool_downs.content, cool_downs.sources
        self._content, self._sources = content, sources
        self._records, self._clock = content.tags, content.clock
        self.cool_downs: Final = cool_downs
        self.past: Final = History(content, sources)
        self._patience = patience
        self._alone = NoSharing(content.tags)
        self._sharing = sharing or self._alone
        self._finds: SingleFlight[TagRecord | None] = SingleFlight("find tag")
        self._fetches: SingleFlight[Manifest] = SingleFlight("fetch tag")
        self._checks: SingleFlight[TagRecord] = SingleFlight("check tag")
        self._refreshes: SingleFlight[None] = SingleFlight("refresh tag")

    async def close(self) -> None:
        """Cancel running checks."""
        for running in (self._refreshes, self._checks, self._fetches, self._finds):
            await running.close()

    async def get(self, target: Target, tag: Tag, directive: CacheDirective) -> Manifest:
        """Return the manifest of a tag. Raises ``RegistryError``."""
        if (digest := await self.past.configured(target, tag)) is not None:
            return await self._manifests.get(target, digest, directive)
        found = await self._resolve(target, tag, directive)
        if found is None:
            try:
                max_age = self._max_age(target, tag, directive)
                return await self._fetch_old_enough(target, tag, directive, max_age)
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

    async def _fetch_old_enough(
        self, target: Target, tag: Tag, directive: CacheDirective, max_age: MaxAge
    ) -> Manifest:
        """Fetch a tag's manifest; return it, or an older one while it is held."""
        manifest = await self._fetch(target, tag, max_age)
        record = TagRecord(manifest.descriptor, self._clock())
        served = await self.cool_downs.served(target, tag, record)
        if served.digest != manifest.descriptor.digest:
            manifest = await self._manifests.get(target, served.digest, directive)
        return replace(manifest, held_until=served.held_until)

    async def _image(
        self, target: Target, tag: Tag, found: ResolvedTag, directive: CacheDirective
    ) -> Manifest:
        """Return a resolved tag's manifest, by tag if upstream no longer has the digest."""
        try:
            manifest = await self._manifests.get(target, found.served.digest, directive)
        except ManifestUnknown:
            if self._rule(target, tag).offline or found.is_held_back:
                raise
            return await self._fetch_old_enough(target, tag, directive, NOW)
        manifest = replace(manifest, held_until=found.served.held_until)
        if manifest.outcome is not Outcome.HIT:
            return replace(manifest, forward=found.forward)
        return replace(manifest, outcome=found.outcome, fresh=found.fresh, forward=found.forward)

    async def _fetch(self, target: Target, tag: Tag, max_age: MaxAge) -> Manifest:
        """Return and record upstream's manifest of a tag; concurrent callers share one request."""
        key = target, tag
        joined = self._fetches.is_running(key)
        manifest = await self._fetches.do(key, lambda: self._fetch_once(target, tag, max_age))
        return replace(manifest, outcome=Outcome.JOIN) if joined else manifest

    async def _fetch_once(self, target: Target, tag: Tag, max_age: MaxAge) -> Manifest:
        async with self._shared(target).check(target, tag, max_age) as check:
            newest = check.known
            if newest is None:
                try:
                    refuse_absent(check, target, tag)
                    manifest = await self._manifests.fetch(target, tag)
                except NotFound as error:
                    await say_gone(check, error, self._rule(target, tag).negative_ttl)
                    raise
                if manifest.outcome is Outcome.THROUGH:  # its digest is not that of its bytes
                    return manifest
                found = manifest.descriptor
                newest = await check.settle(TagRecord(found, self._clock()))
                if newest.descriptor.digest == found.digest:
                    return manifest
            return await self._manifests.get(target, newest.descriptor.digest, CacheDirective.ANY)

    async def head(self, target: Target, tag: Tag, directive: CacheDirective) -> ManifestHead:
        """Return the descriptor of a tag; upstream gets no GET. Raises ``RegistryError``."""
        if (digest := await self.past.configured(target, tag)) is not None:
            return await self._manifests.head(target, digest, directive)
        found = await self._resolve(target, tag, directive)
        if found is None:
            try:
                # Some clients never send a GET for a tag, so a HEAD records it too.
                max_age = self._max_age(target, tag, directive)
                known = await self._check(target, tag, None, max_age)
                served = await self.cool_downs.served(target, tag, known)
                found = ResolvedTag(known, served, Outcome.MISS, None)
            except UpstreamFailure as error:
                found = await self._from_fallback(target, tag, error)
        if isinstance(found, Manifest):
            return described(found)
        return await self._described(target, tag, found, directive)

    async def _described(
        self, target: Target, tag: Tag, found: ResolvedTag, directive: CacheDirective
    ) -> ManifestHead:
        descriptor, served = found.record.descriptor, found.served
        self._content.touch(served.digest)
        if found.is_held_back:
            descriptor = (await self._manifests.head(target, served.digest, directive)).descriptor
        elif self._rule(target, tag).offline or directive is CacheDirective.ONLY_IF_CACHED:
            held = await self._manifests.get(target, descriptor.digest, directive)
            descriptor = held.descriptor
        until = served.held_until
        return ManifestHead(descriptor, found.outcome, None, found.fresh, found.forward, until)

    async def refresh(self, target: Target, tag: Tag, max_age: float = 0.0) -> Refreshed:
        """Check a tag at upstream now. Raises ``RegistryError``.

        Another replica's answer is used for ``max_age`` seconds. The answer is not recorded if the
        rate limit leaves no pull for a new image.
        """
        await self._manifests.absences.forget(target, tag)
        before = await self._records.get(target, tag)
        absence = self._max_age(target, tag, CacheDirective.ANY).absence
        accepted = MaxAge(max_age, min(max_age, absence))
        now = await self._check(target, tag, before, accepted)
        recorded, digest = await self._records.get(target, tag), now.descriptor.digest
        is_recorded = recorded is not None and recorded.descriptor.digest == digest
        former = None if before is None else before.descriptor.digest
        served = await self.cool_downs.served(target, tag, now)
        return Refreshed(former, digest, is_recorded, served.digest)

    def seconds_fresh(self, target: Target, tag: Tag, record: TagRecord) -> float | None:
        """Return the seconds for which a record is served without a check; None if it is not."""
        rule, now = self._rule(target, tag), self._clock()
        if rule.offline or policy.decide(record.checked_at, rule, now) is not Action.SERVE:
            return None
        if not self.cool_downs.is_allowed(target, tag, record.descriptor.digest):
            return None
        return policy.seconds_fresh(record.checked_at, rule, now)

    async def _resolve(
        self, target: Target, tag: Tag, directive: CacheDirective
    ) -> ResolvedTag | Manifest | None:
        """Return the resolved tag, a stale manifest if upstream fails, or None if unknown."""
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
            case Action.SERVE | Action.SERVE_THEN_CHECK:
                if is_stale := action is Action.SERVE_THEN_CHECK:
                    self._refreshes.start((target, tag), lambda: self._refresh(target, tag))
                served = await self.cool_downs.served(target, tag, record)
                outcome = Outcome.STALE if is_stale else Outcome.HIT
                return ResolvedTag(record, served, outcome, fresh)
            case Action.CHECK:
                try:
                    max_age = self._max_age(target, tag, directive)
                    checked = await self._check_in_time(target, tag, record, max_age)
                except RegistryError as error:
                    return await self._serve_stale(target, tag, record, error)
                if (copy := await self._copy_if_scarce(target, tag, record, checked)) is not None:
                    return replace(copy, forward=Forward(200))
                served = await self.cool_downs.served(target, tag, checked)
                return ResolvedTag(checked, served, Outcome.REVALIDATED, rule.tag_ttl, Forward(200))
            case _:
                assert_never(action)

    async def _known(self, target: Target, tag: Tag, directive: CacheDirective) -> TagRecord | None:
        """Return the record of a tag, from other replicas too, or offline a fallback directory."""
        record = await self._records.get(target, tag)
        if record is not None or directive is CacheDirective.ONLY_IF_CACHED:
            return record
        key = target, tag
        if not (self._fetches.is_running(key) or self._checks.is_running(key)):  # asked before
            record = await self._finds.do(key, lambda: self._shared(target).find(target, tag))
        if record is None and self._rule(target, tag).offline:
            return await tag_in_fallback(self._sources[target.upstream], self._records, target, tag)
        return record

    async def _from_fallback(self, target: Target, tag: Tag, error: UpstreamFailure) -> Manifest:
        """Return an unknown tag's image from a fallback directory, or raise ``error``.

        Only if the image can be served in full: some clients ask no other mirror for its layers.
        """
        record = await tag_in_fallback(self._sources[target.upstream], self._records, target, tag)
        if record is None:
            raise error
        digest = (await self.cool_downs.served(target, tag, record)).digest
        await self._manifests.copy_from_other_source(target, digest, CacheDirective.ANY)
        copy = await self._manifests.last_good(target, [digest], FALLBACK_WARNING)
        return instead_of(error, copy)

    async def _check_in_time(
        self, target: Target, tag: Tag, record: TagRecord, max_age: MaxAge
    ) -> TagRecord:
        """Check a tag. If a good copy is held, time out early; the check itself continues."""
        late = UpstreamTimeout(f"{target.upstream} does not confirm {tag} in time")
        may_replace = self._may_replace(target, tag, record, late)
        held = may_replace and await self._manifests.is_whole(target, record.descriptor.digest)
        try:
            async with asyncio.timeout(self._patience if held else None):
                return await self._check(target, tag, record, max_age)
        except TimeoutError:
            raise late from None

    async def _check(
        self, target: Target, tag: Tag, record: TagRecord | None, max_age: MaxAge
    ) -> TagRecord:
        """Check a tag at upstream by HEAD; concurrent callers share one request.

        ``record`` is the last one, None for an unknown tag.
        """

        async def ask() -> TagRecord:
            async with self._shared(target).check(target, tag, max_age) as check:
                return check.known or await self._ask(target, tag, record, check)

        return await self._checks.do((target, tag), ask)

    async def _ask(
        self, target: Target, tag: Tag, record: TagRecord | None, check: Check
    ) -> TagRecord:
        started = self._clock()
        try:
            refuse_absent(check, target, tag)
            named = await self._manifests.ask(target, tag)
        except NotFound as error:
            if (newer := await self._newer(target, tag, record)) is not None:
                return newer
            if record is not None and not self._may_replace(target, tag, record, error):
                await self._records.set(target, tag, None)
            await say_gone(check, error, self._rule(target, tag).negative_ttl)
            raise
        require_confirmation(named, record)
        checked = TagRecord(named.descriptor, self._clock())
        if (newer := await self._newer(target, tag, record)) and newer.checked_at >= started:
            return newer  # a GET was faster
        if await self._copy_if_scarce(target, tag, record, checked) is None:
            return await check.settle(checked)
        return checked

    async def _newer(self, target: Target, tag: Tag, record: TagRecord | None) -> TagRecord | None:
        """Return the tag's record if another request replaced ``record`` meanwhile."""
        current = await self._records.get(target, tag)
        return current if current is not None and current != record else None

    def _shared(self, target: Target) -> Sharing:
        """Return the sharing of tags: none for tags that only some clients may see."""
        return self._sharing if self._sources[target.upstream].callers is None else self._alone

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
            max_age = self._max_age(target, tag, CacheDirective.ANY)
            checked = await self._check(target, tag, record, max_age)
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

        1. The image of the tag, if it is complete: no upstream is needed.
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
            copy = await self._manifests.last_good(target, served.earlier(history), warning)
        return replace(instead_of(error, copy), held_until=served.held_until)

    def _rule(self, target: Target, tag: Tag) -> Rule:
        return self._sources[target.upstream].rule_for(tag)

    def _max_age(self, target: Target, tag: Tag, directive: CacheDirective) -> MaxAge:
        return self._sources[target.upstream].max_age(tag, directive)
