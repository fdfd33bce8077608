"""Leases: which replica fetches a digest from its registry for the fleet.

A lease is a key in Redis that names its holder and expires within ``LEASE_SECONDS``. It is renewed
while its download makes progress, so a holder that is dead, paused or disconnected from its
registry loses it, and another replica acquires it. If Redis loses its data, two replicas may fetch
the same digest, which costs only bandwidth.
"""

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import structlog
from cachetools import LRUCache

from proxy.core.errors import FleetUnavailable
from proxy.core.names import Digest
from proxy.fleet.store import Store

LEASE_SECONDS: Final = 2.5
RENEW_SECONDS: Final = 0.6
OPEN_SECONDS: Final = 20.0
"""Time for which a lease is renewed before the first byte: the registry may answer slowly."""

STORE_SECONDS: Final = 60.0
"""Time for which it is renewed after the last byte, while the content is hashed and stored."""

HOLDERS: Final = 8
"""Maximum number of recorded holders of one digest."""

ASKED: Final = 3
"""Number of these that are asked."""

HOLDERS_SECONDS: Final = 7 * 86400
MAX_FOLLOWED: Final = 10_000

_ACQUIRE: Final = """
local held = redis.call('GET', KEYS[1])
if held and string.sub(held, 1, #ARGV[3] + 1) ~= ARGV[3] .. ' ' then return {held} end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
local found = redis.call('SRANDMEMBER', KEYS[2], ARGV[4])
table.insert(found, 1, '')
return found
"""
"""A lease of the same address is from an earlier process or download, and is replaced."""

_RENEW: Final = """
local held = redis.call('GET', KEYS[1])
if held and held ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_END: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
if ARGV[2] ~= '' then
  if redis.call('SCARD', KEYS[2]) < tonumber(ARGV[4]) then
    redis.call('SADD', KEYS[2], ARGV[2])
  end
  redis.call('EXPIRE', KEYS[2], ARGV[3])
end
"""

log = structlog.get_logger(__name__)


class Progress(NamedTuple):
    """The progress of a download in bytes; ``is_complete``: all bytes have arrived."""

    written: int
    is_complete: bool


class LeaseHolder(NamedTuple):
    """Another replica's lease: its address, and the whole value, which is unique."""

    address: str
    value: str


@dataclass(slots=True, eq=False)
class Lease:
    """The right of this replica to fetch a digest. ``holders`` may have it already."""

    value: str
    holders: tuple[str, ...]
    renew_until: float
    written: int = 0
    is_complete: bool = False

    def is_due(self, progress: Progress) -> bool:
        """Record the progress of the download, and return True if the lease should be renewed."""
        has_grown = progress.written > self.written
        if has_grown and not self.written:
            self.renew_until = 0.0
        if progress.is_complete and not self.is_complete:
            self.is_complete = True
            self.renew_until = time.monotonic() + STORE_SECONDS
        self.written = progress.written
        return has_grown or time.monotonic() < self.renew_until


Key = tuple[str, Digest]
"""An upstream and a digest: unproven bytes of one upstream never reach clients of another."""


class Leases:
    """The leases of this replica; others reach it at ``address``."""

    def __init__(self, store: Store, address: str) -> None:
        self._store = store
        self.address: Final = address
        self._held: dict[Key, Lease] = {}
        self._acquire = store.script("lease", _ACQUIRE)
        self._renew = store.script("renew", _RENEW)
        self._end = store.script("release", _END)
        self._ending: set[asyncio.Task[None]] = set()
        self._followed: LRUCache[Digest, None] = LRUCache(MAX_FOLLOWED)

    async def acquire(
        self, upstream: str, digest: Digest, seconds: float = OPEN_SECONDS
    ) -> Lease | LeaseHolder | None:
        """Return the lease if it is free, else its holder; None if Redis is unreachable.

        It lasts for about ``seconds`` without a download that makes progress.
        """
        value = f"{self.address} {secrets.token_hex(8)}"
        try:
            first, *holders = await self._acquire(
                self._keys(upstream, digest),
                [value, _milliseconds(LEASE_SECONDS), self.address, ASKED],
            )
        except FleetUnavailable:
            return None
        if first:
            return _lease_holder(first)
        others = (holder.decode() for holder in holders)
        lease = Lease(
            value,
            tuple(other for other in others if other != self.address),
            renew_until=time.monotonic() + seconds,
        )
        self._held[upstream, digest] = lease
        self._followed.pop(digest, None)
        return lease

    async def holder(self, upstream: str, digest: Digest) -> LeaseHolder | None:
        """Return the replica that fetches a digest; None without one, or without Redis."""
        try:
            value = await self._store.run("GET", self._keys(upstream, digest)[0])
        except FleetUnavailable:
            return None
        held = None if value is None else _lease_holder(value)
        return None if held is None or held.address == self.address else held

    def holders(self, upstream: str, digest: Digest) -> tuple[str, ...]:
        """Return the replicas that stored a digest, from the lease of this replica."""
        lease = self._held.get((upstream, digest))
        return () if lease is None else lease.holders

    async def forget_holder(self, digest: Digest, address: str) -> None:
        """Remove a replica that no longer has a digest."""
        try:
            await self._store.run("SREM", self._store.key("holders", digest), address)
        except FleetUnavailable:
            return

    def follow(self, digest: Digest) -> None:
        """Record that this replica reads content from the replica that fetches it."""
        self._followed[digest] = None

    def was_followed(self, digest: Digest) -> bool:
        """Return True for content that was read from the replica that fetched it."""
        return digest in self._followed

    def owns(self, upstream: str, digest: Digest) -> bool:
        """Return True while this replica is the one that fetches a digest."""
        return (upstream, digest) in self._held

    def stored(self, digest: Digest) -> None:
        """Publish that this replica has a digest, and release its leases for it.

        It returns at once, as ``release``; ``close`` waits until Redis has it.
        """
        upstreams = [key[0] for key in self._held if key[1] == digest] or [""]
        for upstream in upstreams:
            self._end_later(upstream, digest, is_stored=True)

    def release(self, upstream: str, digest: Digest) -> None:
        """Release the lease, if this replica has it: another one may fetch the digest."""
        if self.owns(upstream, digest):
            self._end_later(upstream, digest, is_stored=False)

    def _end_later(self, upstream: str, digest: Digest, *, is_stored: bool) -> None:
        lease = self._held.pop((upstream, digest), None)
        task = asyncio.create_task(self._ended(upstream, digest, lease, is_stored=is_stored))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def renew_forever(self, progress: Callable[[str, Digest], Progress | None]) -> None:
        """Renew leases while their downloads make progress, until cancelled.

        ``progress`` None: there is no download yet.
        """
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for key, lease in list(self._held.items()):
                if lease.is_due(progress(*key) or Progress(0, is_complete=False)):
                    await self._renewed(key, lease)

    async def close(self) -> None:
        """Release all leases."""
        for upstream, digest in list(self._held):
            self.release(upstream, digest)
        await asyncio.gather(*self._ending, return_exceptions=True)

    async def _renewed(self, key: Key, lease: Lease) -> None:
        try:
            is_ours = await self._renew(
                self._keys(*key), [lease.value, _milliseconds(LEASE_SECONDS)]
            )
        except FleetUnavailable:
            return
        if self._held.get(key) is not lease:  # it ended meanwhile
            await self._ended(*key, lease, is_stored=False)
        elif not is_ours:
            log.info("another replica has taken over a download", digest=key[1])
            del self._held[key]

    async def _ended(
        self, upstream: str, digest: Digest, lease: Lease | None, *, is_stored: bool
    ) -> None:
        value = "" if lease is None else lease.value
        stored_at = self.address if is_stored else ""
        try:
            await self._end(
                self._keys(upstream, digest), [value, stored_at, HOLDERS_SECONDS, HOLDERS]
            )
        except FleetUnavailable:
            return  # it expires

    def _keys(self, upstream: str, digest: Digest) -> list[str]:
        key = self._store.key
        return [key("lease", upstream, digest), key("holders", digest)]


def _lease_holder(value: Any) -> LeaseHolder:
    text = value.decode("utf-8", "replace")
    return LeaseHolder(text.partition(" ")[0], text)


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
