"""Last uses of objects in the bucket by all replicas, and the right to evict.

Uses are a sorted set in Redis, scored by its time. They are sent in batches, so a hit sends no
command. If Redis loses them, the last use of an object is its upload, or the last one by this
replica; while Redis is unreachable nothing is evicted.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Final

from proxy.core.errors import FleetUnavailable, UpstreamUnavailable
from proxy.core.names import Digest
from proxy.fleet.store import Store

FLUSH_SECONDS: Final = 5.0
MAX_WAITING: Final = 100_000
"""Maximum number of uses that wait to be sent; the oldest are dropped first."""

MAX_KNOWN: Final = 2_000_000
"""Maximum number of objects whose last use is in Redis, which takes about 300 MB."""

LEASE_SECONDS: Final = 600
"""An eviction that takes longer may run twice, which deletes the same objects."""

_BATCH: Final = 500
_TRIM_EVERY: Final = 100
_END: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""


class SharedRecency:
    """The last uses by all replicas. Run ``run`` as a task."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._uses = store.key("bucket", "uses")
        self._lease = store.key("bucket", "evictor")
        self._end = store.script("evicted", _END)
        self._waiting: dict[Digest, None] = {}

    def touch(self, digest: Digest) -> None:
        """Count a use; Redis gets it some seconds later."""
        self._waiting.pop(digest, None)
        self._waiting[digest] = None
        if len(self._waiting) > MAX_WAITING:
            del self._waiting[next(iter(self._waiting))]

    def touch_all(self, digests: Iterable[Digest]) -> None:
        """Count uses, in their order."""
        for digest in digests:
            self.touch(digest)

    async def last_used(self, digests: Sequence[Digest]) -> dict[Digest, float]:
        """Return the last uses of objects that Redis has, in Unix seconds.

        Raises ``UpstreamUnavailable`` if Redis is away.
        """
        uses: dict[Digest, float] = {}
        for start in range(0, len(digests), _BATCH):
            batch = digests[start : start + _BATCH]
            try:
                scores = await self._store.run("ZMSCORE", self._uses, *batch)
            except FleetUnavailable as error:
                raise UpstreamUnavailable("the last uses are not known: Redis is away") from error
            known = zip(batch, scores, strict=True)
            uses |= {digest: float(score) for digest, score in known if score is not None}
        return uses

    @asynccontextmanager
    async def lease(self) -> AsyncIterator[bool]:
        """Acquire the right to evict; the value is True if that succeeds."""
        owner = secrets.token_hex(16)
        taken = None
        with suppress(FleetUnavailable):
            taken = await self._store.run("SET", self._lease, owner, "NX", "EX", LEASE_SECONDS)
        try:
            yield taken is not None
        finally:
            if taken is not None:
                with suppress(FleetUnavailable):
                    await self._end([self._lease], [owner])

    async def run(self) -> None:
        """Send the uses, until cancelled."""
        count = 0
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            with suppress(FleetUnavailable):
                await self.flush()
                count += 1
                if count % _TRIM_EVERY == 1:
                    most = -MAX_KNOWN - 1
                    await self._store.run("ZREMRANGEBYRANK", self._uses, 0, most)

    async def flush(self) -> None:
        """Send the uses that wait. Raises ``FleetUnavailable``; those that were not sent are lost.

        A use is never earlier than one that is known (GT), so batches may arrive in any order.
        """
        waiting, self._waiting = list(self._waiting), {}
        now = self._store.now()
        for start in range(0, len(waiting), _BATCH):
            scored = (part for digest in waiting[start : start + _BATCH] for part in (now, digest))
            await self._store.run("ZADD", self._uses, "GT", *scored)
