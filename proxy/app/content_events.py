"""Emits events about the content of the cache."""

from typing import Final

from proxy.content.content import Content
from proxy.content.notices import Cached, Corrupt, Evicted
from proxy.core.names import Digest, Tag, Target
from proxy.core.sources import Place
from proxy.runtime.events import EventKind, Events, Fact

_SOURCES: Final[dict[str, str]] = {Place.DISK: "fallback"}
_WHERE: Final[dict[str, str]] = {Place.REGISTRY: "upstream"}
"""Places with a different name in events."""

CACHE: Final = "cache"
"""The subject of an eviction that is reported as a whole."""


def connect(events: Events, content: Content) -> None:
    """Emit an event for each change of content from now on."""

    def moved(target: Target, tag: Tag, former: Digest | None, now: Digest) -> None:
        events.emit(EventKind.TAG_MOVED, f"{target}:{tag}", **{"from": former, "to": now})

    def cached(one: Cached) -> None:
        events.emit(
            EventKind.CACHED,
            one.digest,
            **_target(one.target),
            bytes=one.size,
            seconds=round(one.seconds, 3),
            source=_SOURCES.get(one.source, str(one.source)),
        )

    def corrupt(one: Corrupt) -> None:
        where = _WHERE.get(one.where, str(one.where))
        known = _target(one.target)
        events.emit(EventKind.CORRUPT, one.digest, **known, found=one.found, where=where)

    def evicted(one: Evicted) -> None:
        if one.blobs > len(one.listed):
            events.emit(EventKind.EVICTED, CACHE, blobs=one.blobs, bytes=one.bytes)
            return
        for record in one.listed:
            used = record.used_at
            events.emit(EventKind.EVICTED, record.digest, bytes=record.size, last_used=used)

    content.tags.on_moved.append(moved)
    content.on_cached.append(cached)
    content.faults.on_corrupt.append(corrupt)
    content.evictor.on_evicted.append(evicted)


def _target(target: Target | None) -> dict[str, Fact]:
    if target is None:
        return {"upstream": None, "repository": None}
    return {"upstream": target.upstream, "repository": target.repo}
