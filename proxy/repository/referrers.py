"""The read-through for referrers: the signatures, attestations and SBOMs of a manifest.

The list comes from upstream's API, or from its fallback tag (distribution-spec "Referrers Tag
Schema"); held manifests that name their subject are added. A failure is never answered with an
empty list, because that would hide a signature.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from proxy.content.content import Content
from proxy.core import policy
from proxy.core.errors import NotFound, NotHeld, RegistryError, UpstreamUnavailable
from proxy.core.manifests import read_referrers, referrers_in
from proxy.core.names import Digest, Tag, Target, parse_digest
from proxy.core.policy import Action, CacheDirective
from proxy.core.records import ReferrersRecord, TagRecord
from proxy.index.expiring import ExpiringRows, Key
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origin
from proxy.repository.results import Forward, Referrers
from proxy.runtime.executors import in_thread_if_large
from proxy.runtime.metrics import Outcome
from proxy.runtime.singleflight import SingleFlight
from proxy.runtime.ttl_cache import TTLCache
from proxy.upstream.lists import MAX_REFERRERS

MAX_KEPT_BYTES: Final = 1024 * 1024
"""A longer list, as JSON, is sent to the client, but neither stored nor linked."""

EXPIRE_SECONDS: Final = 365 * 86400.0
"""Long, because an offline site has no other list; the size limit of the rows applies too."""

EMPTY_SECONDS: Final = 3600.0
"""Seconds for which an empty list about unknown content may be served when upstream fails."""

FAILED_WARNING: Final = "stale: upstream failed, this is the last list of referrers"


class ReferrersCache:
    """The cache of referrers. Each list is checked as often as a signature tag."""

    def __init__(
        self,
        manifests: Manifests,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        rows: ExpiringRows,
    ) -> None:
        self._manifests = manifests
        self._content = content
        self._sources = sources
        self._rows = rows
        self._clock = content.clock
        self._fetches: SingleFlight[ReferrersRecord] = SingleFlight("referrers")
        self._empty: TTLCache[ReferrersRecord] = TTLCache()
        """Empty lists about content that is not held. Any client can ask about any digest, so these
        stay in memory."""

    async def close(self) -> None:
        """Cancel running requests."""
        await self._fetches.close()

    async def get(
        self, target: Target, subject: Digest, artifact_type: str | None, directive: CacheDirective
    ) -> Referrers:
        """Return the referrers of ``subject``: of one type, or of all types for None.

        Raises ``RegistryError``.
        """
        tag = fallback_tag(subject)
        rule = self._sources[target.upstream].rule.for_tag(tag, None)
        listed = await self._rows.get(_key(target, subject), _parse)
        listed = listed or await self._empty.get(f"{target} {subject}")
        known = await self._with_held(target, subject, listed)
        checked_at, now = known.checked_at, self._clock()
        if rule.offline or policy.decide(checked_at, rule, now, directive) is Action.SERVE:
            return _filtered(known, artifact_type, Outcome.HIT)
        if directive is CacheDirective.ONLY_IF_CACHED:
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
            stale = _filtered(known, artifact_type, Outcome.STALE, FAILED_WARNING)
            return replace(stale, forward=Forward(error.upstream_status, error))
        return _filtered(fetched, artifact_type, Outcome.MISS)

    async def _with_held(
        self, target: Target, subject: Digest, listed: ReferrersRecord | None
    ) -> ReferrersRecord:
        """Return upstream's list together with the held manifests that name ``subject``."""
        held = await self._content.links.referrers(target, subject)
        if listed is None:
            return ReferrersRecord(held, None)
        known = {entry["digest"] for entry in listed.entries}
        others = (entry for entry in held if entry["digest"] not in known)
        return ReferrersRecord((*listed.entries, *others), listed.checked_at)

    async def _fetch(self, target: Target, subject: Digest, tag: Tag) -> ReferrersRecord:
        entries = await self._sources[target.upstream].upstream.referrers(target.repo, subject)
        if entries is None:
            entries = await self._tagged(target, tag)
        listed = ReferrersRecord(tuple(entries), self._clock())
        if len(json.dumps(entries)) > MAX_KEPT_BYTES:
            return listed
        key = _key(target, subject)
        is_held = await self._content.record(subject) is not None
        if entries or is_held or await self._rows.get(key, _parse) is not None:
            row = [listed.checked_at, entries]
            await self._rows.set(key, row, EXPIRE_SECONDS, target)
            digests = [parse_digest(str(entry["digest"])) for entry in entries]
            await self._content.links.add_public(target, digests)
        else:
            await self._empty.set(f"{target} {subject}", listed, EMPTY_SECONDS)
        return await self._with_held(target, subject, listed)

    async def _tagged(self, target: Target, tag: Tag) -> list[dict[str, object]]:
        """Return the list under the fallback tag, empty if upstream has no such tag."""
        try:
            manifest = await self._manifests.fetch(target, tag)
        except NotFound:
            return []
        await self._content.tags.set(target, tag, TagRecord(manifest.descriptor, self._clock()))
        body = manifest.body
        entries = await in_thread_if_large(len(body), lambda: read_referrers(body))
        if entries is None:
            raise UpstreamUnavailable(f"{target}:{tag} is no list of referrers")
        if len(entries) > MAX_REFERRERS:
            raise UpstreamUnavailable(
                f"{target}:{tag}: the list has more than {MAX_REFERRERS} entries"
            )
        return entries


def fallback_tag(subject: Digest) -> Tag:
    """Return the tag under which registries without the API keep referrers."""
    algorithm, _, encoded = subject.partition(":")
    return Tag(f"{algorithm[:32]}-{encoded[:64]}")


def _key(target: Target, subject: Digest) -> Key:
    return ("referrers", *target, subject)


def _parse(row: Any) -> ReferrersRecord:
    """Return upstream's list. Raises ``TypeError`` or ``ValueError`` for a row that is none."""
    checked_at, entries = row
    parsed = referrers_in({"manifests": entries})
    if parsed is None:
        raise TypeError("no list of referrers")
    return ReferrersRecord(tuple(parsed), float(checked_at))


def _filtered(
    record: ReferrersRecord, artifact_type: str | None, outcome: Outcome, warning: str | None = None
) -> Referrers:
    entries = record.entries
    if artifact_type is not None:
        entries = tuple(e for e in entries if e.get("artifactType") == artifact_type)
    return Referrers(entries, artifact_type is not None, outcome, warning)
