"""Tags on which all replicas agree: one asks the registry and publishes the answer.

A replica serves a hit from its own record without Redis. The record changes in four cases:

- Another replica has checked the tag, or dropped it: Redis pushes the fact.
- The record is due for a check: the replica acquires a lease, or uses the fact of another replica.
- The tag is not known here: the replica reads the fact.
- Messages may have been lost, or Redis may have lost its data: the replica compares all its tags
  with Redis after a gap, and recently used ones at intervals. It republishes missing facts.

Between two facts, the later request to the registry wins. This replica's records carry its own
time, so they are compared by their age.
"""

import asyncio
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final

import structlog
from cachetools import LRUCache

from proxy.core.errors import FleetUnavailable
from proxy.core.names import Tag, Target
from proxy.core.policy import MaxAge
from proxy.core.records import Clock, Descriptor, TagRecord
from proxy.core.tolerant_json import read_object
from proxy.fleet.own_tags import LocalTags, OwnRecords, Stays
from proxy.fleet.store import Store, Subscription
from proxy.fleet.tag_facts import DROPPED, GONE, Fact, Key, newest, read_fact, read_key
from proxy.fleet.tag_history import SharedHistory
from proxy.fleet.tag_store import CHANNEL, FACT_SECONDS, LEASE_SECONDS, Oldest, TagStore

MAX_FACTS: Final = 10_000
"""Facts in memory, and changes that wait to be applied."""

COMPARE_SECONDS: Final = 15.0
"""Interval at which recently used tags are compared with Redis."""

RETRY_SECONDS: Final = 1.0
_BATCH: Final = 250
_TICK: Final = 1e-6
"""A check that began after a fact was known is at least so many seconds newer."""

_MARGIN: Final = 1.0
"""A drop is so many seconds newer than it is: replicas estimate the clock of Redis, and a check
elsewhere that began before must not seem to have begun after it."""

log = structlog.get_logger(__name__)


class Check:
    """One check of a tag, which begins now with the lease of ``holder``.

    ``known`` or ``is_absent``: another replica has just checked it, so none is needed.
    """

    def __init__(self, tags: "SharedTags", key: Key, holder: str) -> None:
        self._tags = tags
        self.key: Final = key
        self.holder: Final = holder
        self.known: TagRecord | None = None
        self.is_absent = False
        self._started = time.monotonic()
        latest = tags.latest(key)
        self._after = 0.0 if latest is None else latest.at + _TICK
        self.is_settled = False

    async def settle(self, record: TagRecord) -> TagRecord:
        """Publish the registry's answer; return the newest record, which may be newer."""
        return await self._tags.settle(self, record.descriptor) or record

    async def gone(self, negative_ttl: float) -> None:
        """Remove the tag from all replicas that follow deletions: the registry has none.

        An unknown tag is absent for ``negative_ttl`` seconds.
        """
        await self._tags.settle(self, GONE, negative_ttl)

    def at(self, now: float) -> float:
        """Return the start of the check by the clock of Redis, if the time there is ``now``."""
        return max(now - (time.monotonic() - self._started), self._after)


class SharedTags:
    """The tags that replicas share. Run ``follow`` as a task."""

    def __init__(
        self,
        store: Store,
        local: LocalTags,
        clock: Clock,
        *,
        is_shared: Callable[[str], bool],
        stays: Stays,
    ) -> None:
        """``is_shared`` returns True if all clients of an upstream may see the same tags."""
        self._store = store
        self._facts = TagStore(store)
        self._history = SharedHistory(store, self._facts, local, clock)
        self._local = local
        self._clock = clock
        self._is_shared = is_shared
        self._own = OwnRecords(store, local, clock, stays)
        self._latest: LRUCache[Key, Fact] = LRUCache(MAX_FACTS)
        self._dropped: LRUCache[Key, float] = LRUCache(MAX_FACTS)
        """Tags that were dropped here and not yet in Redis, with the monotonic time of the drop."""
        self._waiting: dict[Key, set[asyncio.Future[Fact | None]]] = {}
        self._changed: dict[Key, None] = {}
        self._outdated: dict[Key, None] = {}
        """Tags whose fact in Redis is older than that of this replica."""
        self._extended: dict[Key, None] = {}
        """Tags to whose history another replica has added."""
        self._has_gap = False
        self._woken = asyncio.Event()
        local.on_dropped.append(self._on_dropped)
        store.subscribe(CHANNEL, Subscription(self._on_message, self._on_gap))

    def latest(self, key: Key) -> Fact | None:
        """Return the newest fact that this replica knows."""
        fact: Fact | None = self._latest.get(key)
        return fact

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Read, record and return the fact of a tag that this replica does not know."""
        try:
            (fact,) = await self._facts.read([(target, tag)])
        except FleetUnavailable:
            return None
        if fact is None or fact.is_gone or fact.key in self._dropped:
            return None
        with suppress(FleetUnavailable):
            await self._history.agree(fact.key)
        return await self._take(fact)

    @asynccontextmanager
    async def check(self, target: Target, tag: Tag, max_age: MaxAge) -> AsyncIterator[Check]:
        """Open the only check of a tag in the fleet, or return a fact that is recent enough.

        If another replica checks it now, wait for the result.
        """
        key, holder = (target, tag), secrets.token_hex(8)
        fact = await self._claim(key, holder, max_age)
        check = Check(self, key, holder)
        if fact is not None:
            check.known = await self._take(fact)
            latest = self._latest.get(key)  # None after a gap
            is_gone = latest is not None and latest.descriptor == GONE
            check.is_absent = check.known is None and is_gone
            yield check
            return
        try:
            yield check
        finally:
            if not check.is_settled:
                with suppress(FleetUnavailable):
                    await self._facts.release(key, holder)
                self._wake(key, None)

    async def settle(
        self, check: Check, descriptor: Descriptor, negative_ttl: float = 0.0
    ) -> TagRecord | None:
        """Publish the result of a check, and record the newest fact; None if the tag is gone."""
        newest_known = own = Fact(*check.key, descriptor, check.at(self._store.now()))
        with suppress(FleetUnavailable):
            newest_known = await self._settle(own, check.holder, negative_ttl)
        record = await self._take(newest_known)
        check.is_settled = True
        self._wake(check.key, self._latest.get(check.key))
        return record

    async def _settle(self, fact: Fact, holder: str = "", negative_ttl: float = 0.0) -> Fact:
        """Publish a fact, with the history of its tag if Redis has none; return the newest."""
        past = await self._history.own(fact.key)
        return await self._facts.settle(fact, holder, past, negative_ttl)

    async def follow(self) -> None:
        """Apply facts of other replicas, and compare tags with Redis, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + COMPARE_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._woken.wait()
            self._woken.clear()
            try:
                await self._publish_dropped()
                await self._apply()
                if self._has_gap:
                    await self._compare_all()
                elif loop.time() >= due:
                    await self._compare_recent()
                    due = loop.time() + COMPARE_SECONDS
            except FleetUnavailable:
                self._has_gap = True
                await asyncio.sleep(RETRY_SECONDS)
                self._woken.set()

    async def _claim(self, key: Key, holder: str, max_age: MaxAge) -> Fact | None:
        """Return a fact that is new enough; None if this replica has to check the tag.

        If a check fails, one of the waiting replicas tries it. After that each checks alone, so
        that one broken replica does not delay the others.
        """
        now = self._store.now()
        # Replicas estimate the clock of Redis, so 0 seconds could mean some milliseconds before.
        absence = now - max_age.absence if max_age.absence > 0 else math.inf
        oldest = Oldest(now - max_age.record, absence)
        with suppress(FleetUnavailable, TimeoutError):
            for _ in range(2):
                with self._awaited(key) as result:
                    claim = await self._facts.claim(key, holder, oldest)
                    if claim.fact is not None or claim.is_ours:
                        return claim.fact
                    async with asyncio.timeout(LEASE_SECONDS):
                        if (fact := await result) is not None:
                            return fact
        return None

    @contextmanager
    def _awaited(self, key: Key) -> Iterator["asyncio.Future[Fact | None]"]:
        """Return a future of the result of another replica's check; None if that has failed."""
        future: asyncio.Future[Fact | None] = asyncio.get_running_loop().create_future()
        waiting = self._waiting.setdefault(key, set())
        waiting.add(future)
        try:
            yield future
        finally:
            waiting.discard(future)
            if not waiting and self._waiting.get(key) is waiting:
                del self._waiting[key]

    def _wake(self, key: Key, fact: Fact | None) -> None:
        """Wake the tasks that wait for another replica's check; those of a gone tag claim it."""
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(None if fact is None or fact.is_gone else fact)

    async def _take(self, fact: Fact) -> TagRecord | None:
        """Record a fact, or a newer one, and return it; None if the tag is gone.

        A tag that has moved may have moved more than once, so its history is read as well.
        """
        key = fact.key
        before = await self._local.get(*key)
        has_moved = before is not None and before.descriptor.digest != fact.descriptor.digest
        if has_moved and not fact.is_gone:
            with suppress(FleetUnavailable):
                await self._history.agree(key)
        fact = newest(self._own.fact(key, await self._local.get(*key)), fact)
        # Nothing is awaited between here and the change of the record in memory.
        fact = newest(self._latest.get(key), fact)
        self._latest[key] = fact
        return await self._own.write(fact)

    def _on_gap(self) -> None:
        """Drop times by the old clock: Redis may run on another machine now."""
        self._latest.clear()
        self._own.on_gap()
        self._has_gap = True
        self._woken.set()

    def _on_dropped(self, target: Target, tag: Tag) -> None:
        if self._is_shared(target.upstream):
            at = time.monotonic()
            self._dropped[target, tag] = at
            self._latest[target, tag] = self._drop((target, tag), at)
            self._woken.set()

    def _drop(self, key: Key, at: float) -> Fact:
        """Return the fact that a tag was dropped ``at`` a monotonic time."""
        age = time.monotonic() - at
        return Fact(*key, DROPPED, self._store.now() - age + _MARGIN)

    def _on_message(self, data: bytes) -> None:
        message = read_object(data)
        key, fact = read_key(message), read_fact(message)
        if key is None or not self._is_shared(key[0].upstream):
            return
        if message.get("history") is True:
            self._extended[key] = None
            self._woken.set()
            return
        self._wake(key, fact)
        if fact is None:
            return
        known = self._latest.get(key)
        if newest(known, fact) is fact:
            self._latest[key] = fact
            self._changed[key] = None
        elif known is not None and known.descriptor.digest != fact.descriptor.digest:
            self._outdated[key] = None
        waiting = (self._changed, self._outdated, self._extended)
        if sum(map(len, waiting)) > MAX_FACTS:
            for keys in waiting:
                keys.clear()
            self._has_gap = True
        self._woken.set()

    async def _publish_dropped(self) -> None:
        """Drop tags on all replicas that were dropped here. Raises ``FleetUnavailable``."""
        while self._dropped:
            key, at = next(iter(self._dropped.items()))
            await self._take(await self._facts.settle(self._drop(key, at), ""))
            if self._dropped.get(key) == at:
                del self._dropped[key]

    async def _apply(self) -> None:
        """Record pushed facts about tags that this replica knows. Raises ``FleetUnavailable``."""
        while self._changed or self._outdated or self._extended:
            while self._changed:
                key, _ = self._changed.popitem()
                fact, record = self._latest.get(key), await self._local.get(*key)
                if fact is None or record is None:
                    continue
                taken = await self._take(fact)
                if taken is not None and taken.descriptor.digest != fact.descriptor.digest:
                    self._outdated[key] = None
            while self._outdated:
                key, _ = self._outdated.popitem()
                if (fact := self._latest.get(key)) is not None:
                    await self._settle(fact)
            while self._extended:
                key, _ = self._extended.popitem()
                if await self._local.get(*key) is not None:
                    await self._history.agree(key)

    async def _compare_all(self) -> None:
        self._has_gap = False
        async for batch in self._local.all():
            known = [((one.target, one.tag), one.record) for one in batch]
            known = [one for one in known if self._is_shared(one[0][0].upstream)]
            await self._compare(known)
            await self._history.agree(*(key for key, _ in known))

    async def _compare_recent(self) -> None:
        keys = list(self._latest)
        for start in range(0, len(keys), _BATCH):
            known = [(key, await self._local.get(*key)) for key in keys[start : start + _BATCH]]
            await self._compare([(key, record) for key, record in known if record is not None])

    async def _compare(self, known: Sequence[tuple[Key, TagRecord]]) -> None:
        """Adopt newer facts in Redis, and publish missing ones. Raises ``FleetUnavailable``."""
        oldest = self._clock() - FACT_SECONDS
        known = [(key, record) for key, record in known if record.checked_at > oldest]
        if not known:
            return
        facts = await self._facts.read([key for key, _ in known])
        for (key, record), fact in zip(known, facts, strict=True):
            own = self._own.fact(key, record)
            assert own is not None
            if fact is not None and newest(own, fact) is fact:
                await self._take(fact)
            elif fact is None or fact.descriptor.digest != own.descriptor.digest:
                await self._settle(own)
