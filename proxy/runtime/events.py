"""Events of the cache, for people and other programs.

Any part may emit an event, which is cheap without subscribers. Each subscriber gets the events in
order through a bounded queue: a slow subscriber loses events, which are counted.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

Fact = str | int | float | bool | None
"""A value in the data of an event."""

RECENT: Final = 250
"""Maximum number of events of each kind that are kept for later subscribers."""
QUEUED: Final = 1000
"""Maximum number of queued events for one subscriber."""


class EventKind(StrEnum):
    """The kind of an event."""

    PULL = "pull"
    """A client got a manifest."""
    CACHED = "cached"
    """A blob or manifest arrived, verified, and was stored."""
    TAG_MOVED = "tag-moved"
    """A tag points to another digest than before."""
    EVICTED = "evicted"
    """Content was removed to make room."""
    CORRUPT = "corrupt"
    """Bytes did not match their digest: on the disk, or from upstream."""
    UPSTREAM_DOWN = "upstream-down"
    UPSTREAM_UP = "upstream-up"
    BUDGET_LOW = "budget-low"
    """Few pulls are left of those that upstream allows."""
    DENIED = "denied"
    """A rule denied a pull."""


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened.

    ``serial`` grows by one with each event since the start of the process. ``time`` is Unix
    seconds. ``subject`` is the affected image, digest or upstream.
    """

    serial: int
    time: float
    kind: EventKind
    subject: str
    data: Mapping[str, Fact] = field(default_factory=dict)


class Emitter(Protocol):
    """Emits events, as ``Events`` does."""

    def emit(self, kind: EventKind, subject: str, /, **data: Fact) -> None:
        """Deliver an event to all subscribers."""

    def wanted(self, kind: EventKind) -> bool:
        """Return True if a subscriber wants events of this kind: ask before costly ones."""


class _NullEmitter:
    """Discards events."""

    def emit(self, kind: EventKind, subject: str, /, **data: Fact) -> None:
        """Do nothing."""

    def wanted(self, kind: EventKind) -> bool:
        """Return False."""
        del kind
        return False


NULL_EMITTER: Final[Emitter] = _NullEmitter()
"""The default emitter."""


class Subscription:
    """The events of one subscriber, in order."""

    def __init__(self, kinds: Collection[EventKind], queued: int) -> None:
        self._kinds = frozenset(kinds)
        self._queue: deque[Event] = deque()
        self._most = queued
        self._waiting: asyncio.Future[None] | None = None
        self.dropped = 0
        """Events that were lost because the queue was full."""

    def wants(self, kind: EventKind) -> bool:
        """Return True if events of this kind are delivered. Without kinds, all are."""
        return not self._kinds or kind in self._kinds

    def offer(self, event: Event) -> None:
        """Queue an event; if the queue is full, the oldest one is lost."""
        if not self.wants(event.kind):
            return
        if len(self._queue) >= self._most:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(event)
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    async def next(self) -> Event:
        """Return the next event, once there is one. Only one task may wait."""
        await self.some()
        return self._queue.popleft()

    async def some(self) -> None:
        """Return once there is an event. Only one task may wait."""
        while not self._queue:
            self._waiting = asyncio.get_running_loop().create_future()
            await self._waiting

    def drain(self) -> list[Event]:
        """Return the queued events, and empty the queue."""
        taken = [*self._queue]
        self._queue.clear()
        return taken


class Events:
    """The events of one process. ``clock`` returns Unix seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._serial = 0
        self._recent: dict[EventKind, deque[Event]] = {
            kind: deque(maxlen=RECENT)
            for kind in EventKind
            if kind is not EventKind.PULL  # they are counted and logged elsewhere
        }
        self._subscriptions: list[Subscription] = []
        self._wanted: frozenset[EventKind] = frozenset()
        self.on_wanted: Final[list[Callable[[], None]]] = []
        """Called when the set of wanted kinds changes."""

    @property
    def last(self) -> int:
        """The serial number of the last event, 0 without one."""
        return self._serial

    def emit(self, kind: EventKind, subject: str, /, **data: Fact) -> None:
        """Deliver an event to all subscribers."""
        self.emit_of(self._clock(), kind, subject, data)

    def emit_of(self, at: float, kind: EventKind, subject: str, data: Mapping[str, Fact]) -> None:
        """Deliver an event of another process to all subscribers, ``at`` in Unix seconds."""
        self._serial += 1
        event = Event(self._serial, at, kind, subject, data)
        if (recent := self._recent.get(kind)) is not None:
            recent.append(event)
        for subscription in self._subscriptions:
            subscription.offer(event)

    def wanted(self, kind: EventKind) -> bool:
        """Return True if a subscriber wants events of this kind: ask before costly ones."""
        return kind in self._wanted

    def recent(self, kinds: Collection[EventKind] = (), *, after: int = 0) -> list[Event]:
        """Return the latest events except pulls, after a serial number, oldest first."""
        found = [
            event
            for kind, events in self._recent.items()
            if not kinds or kind in kinds
            for event in events
            if event.serial > after
        ]
        return sorted(found, key=lambda event: event.serial)

    @contextmanager
    def subscribed(
        self, kinds: Collection[EventKind] = (), *, queued: int = QUEUED
    ) -> Iterator[Subscription]:
        """Deliver events of these kinds, or of all if none is named, until the context ends."""
        subscription = Subscription(kinds, queued)
        self._subscriptions.append(subscription)
        self._count_wanted()
        try:
            yield subscription
        finally:
            self._subscriptions.remove(subscription)
            self._count_wanted()

    def _count_wanted(self) -> None:
        before = self._wanted
        self._wanted = frozenset(
            kind for kind in EventKind if any(each.wants(kind) for each in self._subscriptions)
        )
        if self._wanted != before:
            for listener in self.on_wanted:
                listener()
