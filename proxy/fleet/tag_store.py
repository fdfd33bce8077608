"""Facts about tags in Redis, and the lease for the check of a tag."""

import json
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from proxy.core.errors import DigestInvalid, FleetUnavailable
from proxy.core.names import parse_digest
from proxy.core.records import HISTORY_LIMIT, TagHistoryEntry
from proxy.fleet.store import Argument, Store
from proxy.fleet.tag_facts import Fact, Key, named, read_fact

CHANNEL: Final = "tags"
FACT_SECONDS: Final = 90 * 86400.0
"""Time after which Redis loses an unchecked tag with its history; replicas keep their own."""

UNKNOWN_SECONDS: Final = 60.0
"""Minimum life of the fact that an unknown tag is gone: a slow check before it must not win."""

LEASE_SECONDS: Final = 3.0
"""Time after which replicas that wait for another one's check ask the registry themselves."""

_FIELDS: Final = ("at", "digest", "type", "size")

_CLAIM: Final = """
local found = redis.call('HMGET', KEYS[1], 'at', 'digest', 'type', 'size')
local at, oldest = found[1] and tonumber(found[1]), tonumber(ARGV[3])
if found[2] == '' then oldest = found[3] == '' and tonumber(ARGV[4]) end
if at and oldest and at >= oldest then return {0, found} end
if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return {1, found} end
return {0, false}
"""
"""Arguments: the holder, the life of the lease, and from when on a fact is new enough: that a tag
points somewhere, or that the registry has none. That it was dropped says nothing of the registry.
"""

_SETTLE: Final = f"""
local found = redis.call('HMGET', KEYS[1], 'at', 'digest', 'type', 'size', 'since', 'history')
local holder, at, digest = ARGV[1], ARGV[2], ARGV[3]
local at_before = found[1] and tonumber(found[1])
local is_older = found[1] and (at_before > tonumber(at)
  or (at_before == tonumber(at) and found[2] > digest))
if redis.call('GET', KEYS[2]) == holder then redis.call('DEL', KEYS[2]) end
if is_older then
  redis.call('PUBLISH', ARGV[7], ARGV[9])
  return {{found[1], found[2], found[3], found[4]}}
end
local since, history = found[5] or ARGV[11], found[6] or ARGV[12]
if found[2] and found[2] ~= digest then since = at end
if found[2] and found[2] ~= digest and found[2] ~= '' then
  history = history .. found[2] .. ' ' .. (found[5] or at) .. ' ' .. found[1] .. '\\n'
  local _, count = string.gsub(history, '\\n', '')
  if count > {HISTORY_LIMIT} then history = string.gsub(history, '^[^\\n]*\\n', '', 1) end
end
if digest == '' and ARGV[4] ~= '' then history = '' end
redis.call('HSET', KEYS[1], 'at', at, 'digest', digest, 'type', ARGV[4], 'size', ARGV[5],
  'since', since, 'history', history)
local life = ARGV[6]
if digest == '' and ARGV[4] == '' and history == '' then
  life = math.max(redis.call('PTTL', KEYS[1]), ARGV[10])
end
redis.call('PEXPIRE', KEYS[1], life)
redis.call('PUBLISH', ARGV[7], ARGV[8])
return false
"""
"""Compare and set: an older fact never replaces a newer one. Returns the newer one.

A tag that was dropped has no history. That a tag is gone of which nothing was known is remembered
for a short time only, because clients may ask for any number of them. What was to be remembered for
longer still is, such as a drop.
"""

_RELEASE: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return redis.call('PUBLISH', ARGV[2], ARGV[3])
"""


_EXTEND: Final = """
local found = redis.call('HMGET', KEYS[1], 'digest', 'history')
if found[1] ~= ARGV[1] or found[2] ~= ARGV[2] then return 0 end
redis.call('HSET', KEYS[1], 'since', ARGV[3], 'history', ARGV[4])
return redis.call('PUBLISH', ARGV[5], ARGV[6])
"""
"""Arguments: the digest and history to be replaced, the new first sight and history, a message."""


class Oldest(NamedTuple):
    """From when on facts are new enough, by the clock of Redis: see ``MaxAge``."""

    record: float
    absence: float


class Claim(NamedTuple):
    """The next step of a check: use ``fact``, check if it ``is_ours``, or wait for another's."""

    fact: Fact | None
    is_ours: bool


class StoredHistory(NamedTuple):
    """Where a tag points and has pointed, by the clock of Redis, the latest last.

    ``digest`` and ``history`` are as Redis has them.
    """

    digest: bytes
    history: bytes
    entries: tuple[TagHistoryEntry, ...]


class TagStore:
    """All verbs raise ``FleetUnavailable``."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._claim = store.script("claim_tag", _CLAIM)
        self._settle = store.script("settle_tag", _SETTLE)
        self._release = store.script("release_tag", _RELEASE)
        self._extend = store.script("extend_tag", _EXTEND)
        self._channel = store.key(CHANNEL)

    async def claim(self, key: Key, holder: str, oldest: Oldest) -> Claim:
        """Return the fact if it is not older than ``oldest``, else try to acquire the lease."""
        lease = int(LEASE_SECONDS * 1000)
        is_ours, found = await self._claim(self._keys(key), [holder, lease, *oldest])
        fact = None if is_ours or not found else _fact(key, found)
        return Claim(fact, bool(is_ours))

    async def settle(
        self,
        fact: Fact,
        holder: str,
        past: Sequence[TagHistoryEntry] = (),
        negative_ttl: float = 0.0,
    ) -> Fact:
        """Publish a fact unless a newer one is known; return the newer one. Ends the lease.

        ``past`` is what this replica saw of the tag, in case Redis knows nothing. The absence of a
        tag that was never there is known for ``negative_ttl`` seconds or longer.
        """
        unknown = min(max(UNKNOWN_SECONDS, negative_ttl), FACT_SECONDS)
        found = fact.descriptor
        arguments: list[Argument] = [holder, repr(fact.at)]
        arguments += [found.digest, found.media_type, found.size]
        arguments += [int(FACT_SECONDS * 1000), self._channel]
        arguments += [fact.encoded(), _released(fact.key), int(unknown * 1000)]
        arguments += _written(past, found.digest, fact.at)
        newer = await self._settle(self._keys(fact.key), arguments)
        return fact if newer is None else _fact(fact.key, newer) or fact

    async def release(self, key: Key, holder: str) -> None:
        """End the lease of a check that has failed, and wake those that wait for it."""
        await self._release(self._keys(key)[1:], [holder, self._channel, _released(key)])

    async def read(self, keys: Sequence[Key]) -> list[Fact | None]:
        """Return the facts about tags, also about those that are gone, in one round trip."""
        answers = await self._store.run_all(
            *(["HMGET", self._keys(key)[0], *_FIELDS] for key in keys)
        )
        return [_fact(key, found) for key, found in zip(keys, answers, strict=True)]

    async def histories(self, keys: Sequence[Key]) -> list[StoredHistory | None]:
        """Return where tags point and have pointed, in one round trip; None if it is not known."""
        fields = ("digest", "history", "since", "at")
        answers = await self._store.run_all(
            *(["HMGET", self._keys(key)[0], *fields] for key in keys)
        )
        return [*map(_stored_history, answers)]

    async def extend(
        self, key: Key, known: StoredHistory, entries: Sequence[TagHistoryEntry]
    ) -> None:
        """Replace what is ``known``, if it is still the same, and have others read it.

        The last of ``entries`` is where the tag points.
        """
        digest = entries[-1].digest
        since, history = _written(entries, digest, entries[-1].first_seen)
        message = json.dumps({**named(key), "history": True})
        await self._extend(
            self._keys(key)[:1],
            [known.digest, known.history, since, history, self._channel, message],
        )

    def _keys(self, key: Key) -> list[str]:
        """Return the keys of the fact and of the lease, which are on one node of a cluster."""
        (upstream, repo), tag = key
        name = f"{{{upstream}/{repo}:{tag}}}"
        return [self._store.key("tag", name), self._store.key("check", name)]


def _stored_history(found: Any) -> StoredHistory | None:
    """Return what the fields of a tag say; None if they are missing or malformed."""
    if isinstance(found, Exception):
        raise FleetUnavailable(type(found).__name__)
    if not found or None in found:
        return None
    digest, history, since, at = found
    lines = [line.split() for line in history.splitlines()]
    if digest:
        lines.append([digest, since, at])
    try:
        entries = tuple(
            TagHistoryEntry(parse_digest(name.decode()), float(first), float(last))
            for name, first, last in lines
        )
    except (ValueError, DigestInvalid):
        return None
    return StoredHistory(digest, history, entries)


def _written(past: Sequence[TagHistoryEntry], digest: str, at: float) -> tuple[str, str]:
    """Return since when a tag points to a digest, ``at`` if that is new, and what was before."""
    earlier = list(past)
    since = earlier.pop().first_seen if earlier and earlier[-1].digest == digest else at
    lines = (f"{one.digest} {one.first_seen!r} {one.last_seen!r}\n" for one in earlier)
    return repr(since), "".join(list(lines)[-HISTORY_LIMIT:])


def _released(key: Key) -> bytes:
    return json.dumps(named(key)).encode()


def _fact(key: Key, found: Any) -> Fact | None:
    """Return what the fields of a fact say; None if they are missing or malformed."""
    if isinstance(found, Exception):
        raise FleetUnavailable(type(found).__name__)
    if not found or None in found:
        return None
    texts = [field.decode(errors="replace") for field in found]
    try:
        at, size = float(texts[0]), int(texts[3])
    except ValueError:
        return None
    read = named(key) | {"digest": texts[1], "type": texts[2]}
    return read_fact({**read, "size": size, "at": at})
