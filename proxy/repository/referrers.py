"""Answers for referrers: what signs, attests or describes a manifest.

Upstream's API, else its fallback tag (distribution-spec "Referrers Tag Schema"), else what is held
and says so itself. Never an empty list for a failure: that would hide a signature.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Final

from proxy.content.content import Content
from proxy.core import policy
from proxy.core.errors import NotFound, NotHeld, RegistryError, UpstreamUnavailable
from proxy.core.manifests import read_referrers
from proxy.core.names import Digest, Tag, Target, parse_digest
from proxy.core.policy import Action, CacheDirective
from proxy.core.records import Clock, ReferrersRecord
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origin
from proxy.repository.results import Forward, Referrers
from proxy.runtime.executors import by_size
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight
from proxy.runtime.ttl_cache import TTLCache
from proxy.upstream.lists import MAX_REFERRERS

MAX_KEPT: Final = 1024 * 1024
"""Bytes. A longer list is passed on, but neither kept nor linked."""

EMPTY_SECONDS: Final = 3600.0
"""How long an empty list may stand in for upstream when that fails."""

FAILED_WARNING: Final = "stale: upstream failed, these are the referrers last seen"


class ReferrersCache:
    """The cache of referrers, each list checked as often as a signature tag."""

    def __init__(
        self,
        manifests: Manifests,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        clock: Clock,
    ) -> None:
        self._manifests = manifests
        self._content = content
        self._sources = sources
        self._clock = clock
        self._fetches: SingleFlight[ReferrersRecord] = SingleFlight("referrers")
        self._empty: TTLCache[ReferrersRecord] = TTLCache()
        """Empty lists about what is not here: anybody may ask for any digest, so none has a row."""

    async def close(self) -> None:
        """Cancel what runs."""
        await self._fetches.close()

    async def get(
        self, target: Target, subject: Digest, artifact_type: str | None, asked: CacheDirective
    ) -> Referrers:
        """Return what refers to ``subject``, of one type or (None) of all.

        Raises ``RegistryError``.
        """
        tag = fallback_tag(subject)
        rule = self._sources[target.upstream].rule.for_tag(tag, None)
        record = await self._known(target, subject)
        checked_at, now = record.checked_at, self._clock()
        if rule.offline or policy.decide(checked_at, rule, now, asked) is Action.SERVE:
            return _filtered(record, artifact_type, Outcome.HIT)
        if asked is CacheDirective.ONLY_IF_CACHED:
            raise NotHeld(f"the referrers of {target}@{subject} are not held")
        try:
            fetched = await self._fetches.do(
                (target, subject), lambda: self._fetch(target, subject, tag)
            )
        except RegistryError as error:
            if checked_at is None:
                raise
            if policy.on_failure(checked_at, rule, now, error) is not Action.SERVE:
                raise
            stale = _filtered(record, artifact_type, Outcome.STALE, FAILED_WARNING)
            return replace(stale, forward=Forward(error.upstream_status, error))
        return _filtered(fetched, artifact_type, Outcome.MISS)

    async def _known(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what was last seen to refer to a manifest."""
        record = await self._content.referrers.get(target, subject)
        empty = await self._empty.get(f"{target} {subject}")
        if record.checked_at is None and empty is not None:
            return ReferrersRecord(record.entries, empty.checked_at)
        return record

    async def _fetch(self, target: Target, subject: Digest, tag: Tag) -> ReferrersRecord:
        upstream = self._sources[target.upstream].upstream
        entries = await upstream.referrers(target.repo, subject)
        if entries is None:
            try:
                manifest = await self._manifests.fetch_tag(target, tag)
            except NotFound:
                entries = []
            else:
                body = manifest.body
                entries = await by_size(len(body), lambda: read_referrers(body))
                if entries is None:
                    raise UpstreamUnavailable(f"{target}:{tag} is no list of referrers")
                if len(entries) > MAX_REFERRERS:
                    raise UpstreamUnavailable(
                        f"{target}:{tag}: the list has more than {MAX_REFERRERS} entries"
                    )
        record = ReferrersRecord(tuple(entries), self._clock())
        if len(json.dumps(entries)) > MAX_KEPT:
            return record
        known = await self._content.referrers.get(target, subject)
        is_held = await self._content.record(subject) is not None
        if not entries and known.checked_at is None and not is_held:
            await self._empty.learn(f"{target} {subject}", record, EMPTY_SECONDS)
            return ReferrersRecord(known.entries, record.checked_at)
        await self._content.referrers.set(target, subject, record)
        listed = [parse_digest(str(entry["digest"])) for entry in entries]
        await self._content.link_public(target, listed)
        return await self._content.referrers.get(target, subject)


def fallback_tag(subject: Digest) -> Tag:
    """Return the tag under which registries without the API keep referrers."""
    algorithm, _, encoded = subject.partition(":")
    return Tag(f"{algorithm[:32]}-{encoded[:64]}")


def _filtered(
    record: ReferrersRecord, artifact_type: str | None, outcome: Outcome, warning: str | None = None
) -> Referrers:
    entries = record.entries
    if artifact_type is not None:
        entries = tuple(e for e in entries if e.get("artifactType") == artifact_type)
    return Referrers(entries, artifact_type is not None, outcome, warning)
