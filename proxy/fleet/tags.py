"""Tags on which all replicas agree: one asks the registry, all hear of it, none goes back.

A replica serves a hit from its own record and asks Redis nothing. The record changes in four cases:

- Another replica has checked the tag: Redis pushes the fact.
- The record is due for a check: the replica takes a lease for it, or the fact of another replica.
- The tag is not known here: the fact is read.
- Messages may have been lost, or Redis may have lost its data: all own tags are compared with Redis
  after a gap, and the recently used ones now and then. A fact that Redis lacks is published again.

Between two facts, the later request to the registry wins. This replica's records carry its own
time, so they are compared by their age.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Final, NamedTuple, Protocol

import structlog
from cachetools import LRUCache

from proxy.core.errors import FleetUnavailable
from proxy.core.names import Tag, Target
from proxy.core.records import Clock, Descriptor, TagRecord
from proxy.core.tolerant_json import read_object
from proxy.fleet.store import Store, Subscription
from proxy.fleet.tag_facts import GONE, Fact, Key, newest, read_fact, read_key
from proxy.fleet.tag_history import LocalHistory, SharedHistory
from proxy.fleet.tag_store import CHANNEL, FACT_SECONDS, LEASE_SECONDS, TagStore

MAX_FACTS: Final = 10_000
"""Facts in memory, and changes that wait to be applied."""

COMPARE_SECONDS: Final = 15.0
"""How often recently used tags are compared with Redis."""

RETRY_SECONDS: Final = 1.0
_BATCH: Final = 250
MAX_STEP: Final = 1.0
"""A record that is newer than now by so many seconds was made while the clock was wrong."""

_TICK: Final = 1e-6
"""A check that began after a fact was known is at least so many seconds newer."""

log = structlog.get_logger(__name__)


class Image(Protocol):
    """A tag and its record in this replica's index."""

    @property
    def target(self) -> Target:
        """The repository."""

    @property
    def tag(self) -> Tag:
        """The tag."""

    @property
    def record(self) -> TagRecord:
        """Where it points."""


class _Taken(NamedTuple):
    """A fact of which a record was made; ``at`` is this machine's monotonic time of the check.

    ``gaps`` counts those before it.
    """

    fact: Fact
    at: float
    gaps: int


class LocalTags(LocalHistory, Protocol):
    """The records of this replica."""

    async def get(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag points."""

    async def set(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        """Record where a tag points."""

    def all(self) -> AsyncIterator[Sequence[Image]]:
        """Yield all tags in batches."""


class Check:
    """One check of a tag, which begins now and has the lease of ``holder``.

    ``known``: another replica has just checked it, so none is needed.
    """

    def __init__(
        self, tags: "SharedTags", key: Key, holder: str, known: TagRecord | None = None
    ) -> None:
        self._tags = tags
        self.key: Final = key
        self.known: Final = known
        self.holder: Final = holder
        self._started = time.monotonic()
        latest = tags.latest(key)
        self._after = 0.0 if latest is None else latest.at + _TICK
        self.is_settled = False

    async def settle(self, record: TagRecord) -> TagRecord:
        """Record what the registry says, for all; return the newest record, which may be newer."""
        return await self._tags.settle(self, record.descriptor)

    async def gone(self) -> None:
        """Let no replica learn any more where the tag pointed: the registry has deleted it."""
        await self._tags.forget(self)

    def at(self, now: float) -> float:
        """Return when it began, if it is ``now``, by the clock of Redis."""
        return max(now - (time.monotonic() - self._started), self._after)


class SharedTags:
    """The tags that replicas share. Run ``follow`` as a task."""

    def __init__(
        self, store: Store, local: LocalTags, clock: Clock, is_shared: Callable[[str], bool]
    ) -> None:
        """``is_shared`` tells whether all clients of an upstream may see the same tags."""
        self._store = store
        self._facts = TagStore(store)
        self._history = SharedHistory(store, self._facts, local, clock)
        self._local = local
        self._clock = clock
        self._is_shared = is_shared
        self._latest: LRUCache[Key, Fact] = LRUCache(MAX_FACTS)
        self._taken: LRUCache[Key, _Taken] = LRUCache(MAX_FACTS)
        """Facts of which the records here were made: a record has another clock, which jumps."""
        self._waiting: dict[Key, set[asyncio.Future[Fact | None]]] = {}
        self._changed: dict[Key, None] = {}
        self._outdated: dict[Key, None] = {}
        """Tags of which Redis has an older fact than this replica."""
        self._extended: dict[Key, None] = {}
        """Tags of which another replica has added to the history."""
        self._gaps = 0
        self._has_gap = False
        self._woken = asyncio.Event()
        store.subscribe(CHANNEL, Subscription(self._on_message, self._on_gap))

    def latest(self, key: Key) -> Fact | None:
        """Return the newest fact that this replica has heard of."""
        fact: Fact | None = self._latest.get(key)
        return fact

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return and record where a tag points that this replica does not know."""
        try:
            (fact,) = await self._facts.read([(target, tag)])
        except FleetUnavailable:
            return None
        if fact is None or fact.descriptor is GONE:
            return None
        return await self._take(fact)

    @asynccontextmanager
    async def check(self, target: Target, tag: Tag, max_age: float) -> AsyncIterator[Check]:
        """Give the check of a tag, alone in the fleet, or what is known for ``max_age`` seconds.

        If another replica checks it now, wait for the result.
        """
        key, holder = (target, tag), secrets.token_hex(8)
        fact = await self._claim(key, holder, max_age)
        if fact is not None:
            yield Check(self, key, holder, await self._take(fact))
            return
        check = Check(self, key, holder)
        try:
            yield check
        finally:
            if not check.is_settled:
                with suppress(FleetUnavailable):
                    await self._facts.release(key, holder)
                self._wake(key, None)

    async def settle(self, check: Check, descriptor: Descriptor) -> TagRecord:
        """Publish the result of a check, and record the newest fact."""
        own = Fact(*check.key, descriptor, check.at(self._store.now()))
        newer = own
        with suppress(FleetUnavailable):
            newer = await self._settle(own, check.holder)
        record = await self._take(own if newer.descriptor is GONE else newer)
        check.is_settled = True
        self._wake(check.key, self._latest.get(check.key))
        return record

    async def _settle(self, fact: Fact, holder: str = "") -> Fact:
        """Publish a fact, with the history of its tag if Redis has none; return the newest."""
        return await self._facts.settle(fact, holder, await self._history.own(fact.key))

    async def forget(self, check: Check) -> None:
        """Publish that a tag is gone. Replicas that know it find out by their own next check."""
        self._latest.pop(check.key, None)
        with suppress(FleetUnavailable):
            at = check.at(self._store.now())
            await self._facts.settle(Fact(*check.key, GONE, at), check.holder)
        check.is_settled = True
        self._wake(check.key, None)

    async def follow(self) -> None:
        """Apply what other replicas find, and compare tags with Redis, until cancelled."""
        loop = asyncio.get_running_loop()
        due = loop.time() + COMPARE_SECONDS
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(due):
                    await self._woken.wait()
            self._woken.clear()
            try:
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

    async def _claim(self, key: Key, holder: str, max_age: float) -> Fact | None:
        """Return a fact that is new enough; None if this replica has to check the tag.

        A check that fails is tried by one of those that wait for it. After that each is on its own,
        so that one broken replica does not hold up the others.
        """
        oldest = self._store.now() - max_age
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
        """Give a future of the result of another replica's check; None if that has failed."""
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
        """Tell those that wait for another check how it ended."""
        for future in self._waiting.get(key, ()):
            if not future.done():
                future.set_result(fact)

    async def _take(self, fact: Fact) -> TagRecord:
        """Record a fact, or what is newer, and return that.

        If the tag has moved, it may have pointed elsewhere in between: others know.
        """
        key = fact.key
        before = await self._local.get(*key)
        if before is None or before.descriptor.digest != fact.descriptor.digest:
            with suppress(FleetUnavailable):
                await self._history.agree(key)
        fact = newest(self._own(key, await self._local.get(*key)), fact)
        # Nothing is awaited between here and the change of the record in memory.
        fact = newest(self._latest.get(key), fact)
        self._latest[key] = fact
        self._remember(fact)
        record = self._record(fact)
        await self._local.set(*key, record)
        return record

    def _remember(self, fact: Fact) -> None:
        age = self._store.now() - fact.at
        self._taken[fact.key] = _Taken(fact, time.monotonic() - age, self._gaps)

    def _own(self, key: Key, record: TagRecord | None) -> Fact | None:
        """Return what this replica's record says, by the clock of Redis.

        There are three cases. A record of this process has a fact, whose age is known even if this
        machine's clock was set. After a gap Redis may run on another machine, with another clock.
        A record of an earlier process has this machine's time; one from the future says nothing.
        """
        if record is None:
            return None
        taken: _Taken | None = self._taken.get(key)
        if taken is not None and taken.fact.descriptor == record.descriptor:
            if taken.gaps == self._gaps:
                return taken.fact
            age = time.monotonic() - taken.at
        else:
            age = self._clock() - record.checked_at
            if age < -MAX_STEP:
                return Fact(*key, record.descriptor, 0.0)
        return Fact(*key, record.descriptor, self._store.now() - max(0.0, age))

    def _record(self, fact: Fact) -> TagRecord:
        age = max(0.0, self._store.now() - fact.at)
        return TagRecord(fact.descriptor, self._clock() - age)

    def _on_gap(self) -> None:
        """Forget what is known by another clock: Redis may run on another machine now."""
        self._latest.clear()
        self._gaps += 1
        self._has_gap = True
        self._woken.set()

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

    async def _apply(self) -> None:
        """Record pushed facts about tags that this replica knows. Raises ``FleetUnavailable``."""
        while self._changed or self._outdated or self._extended:
            while self._changed:
                key, _ = self._changed.popitem()
                fact, record = self._latest.get(key), await self._local.get(*key)
                if fact is None or record is None:
                    continue
                taken = await self._take(fact)
                if taken.descriptor.digest != fact.descriptor.digest:
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
        """Take what Redis knows better, and publish what it lacks. Raises ``FleetUnavailable``."""
        oldest = self._clock() - FACT_SECONDS
        known = [(key, record) for key, record in known if record.checked_at > oldest]
        if not known:
            return
        facts = await self._facts.read([key for key, _ in known])
        for (key, record), fact in zip(known, facts, strict=True):
            own = self._own(key, record)
            assert own is not None
            if fact is not None and newest(own, fact) is fact:
                if fact.descriptor is GONE:
                    continue
                await self._take(fact)
            elif fact is None or fact.descriptor.digest != own.descriptor.digest:
                await self._settle(own)
