"""Sends events to receivers: each event waits in a durable queue until it is delivered.

``receivers`` select events, ``formats`` and ``signing`` build a request, ``delivery`` sends the
queue of one receiver. A receiver that is slow or unreachable delays only its own queue.
"""

import asyncio
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

import structlog
from aiohttp import ClientSession, DummyCookieJar, TCPConnector

from proxy.core.errors import StorageError
from proxy.index.outbox import Outbox
from proxy.runtime.events import Event, Events, Subscription
from proxy.runtime.executors import run_to_completion
from proxy.runtime.metrics import Metrics
from proxy.runtime.part_counters import NotificationCounters
from proxy.services.notifications.delivery import Delivery
from proxy.services.notifications.formats import stored

if TYPE_CHECKING:
    from proxy.services.notifications.receivers import Receiver

BUFFER: Final = 10_000
"""Maximum number of events in memory that are not in the file yet."""

KEEP_SECONDS: Final = 30 * 86400.0
"""How long events are kept for receivers that are no longer configured."""

log = structlog.get_logger(__name__)


class Notifications:
    """All receivers, and their queues in ``outbox``. ``source`` is the URI of this Millpond.

    An async context manager; its exit stores all events that were emitted until then.
    """

    def __init__(self, events: Events, outbox: Outbox, metrics: Metrics, source: str) -> None:
        self._events = events
        self._outbox = outbox
        self._metrics = metrics
        self._source = source
        self._subscribed = ExitStack()
        self._subscription: Subscription | None = None
        self._lost = 0
        self._deliveries: tuple[Delivery, ...] = ()
        self._changed = asyncio.Event()
        self._session: ClientSession | None = None

    async def __aenter__(self) -> Self:
        self._session = ClientSession(
            connector=TCPConnector(limit=0), cookie_jar=DummyCookieJar(), trust_env=False
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        left = self._unsubscribe()
        await self._save(left)
        if self._session is not None:
            await self._session.close()
        await self._outbox.close()

    def use(self, receivers: Sequence["Receiver"]) -> None:
        """Send events to these from now on. Those that were disabled are tried again."""
        assert self._session is not None
        left = self._unsubscribe()
        self._deliveries = tuple(
            Delivery(one, self._outbox, self._session, self._counters(one.name), self._source)
            for one in receivers
        )
        for name, counters in self._metrics.notifications.items():
            counters.is_disabled = False
            if all(one.name != name for one in receivers):
                counters.queued = 0
        if kinds := {kind for one in receivers for kind in one.kinds}:
            subscribing = self._events.subscribed(kinds, queued=BUFFER)
            self._subscription = self._subscribed.enter_context(subscribing)
            for event in left:
                self._subscription.offer(event)
        self._changed.set()

    async def run(self) -> None:
        """Store and deliver events until cancelled."""
        while True:
            self._changed.clear()
            async with asyncio.TaskGroup() as group:
                work = [group.create_task(one.run()) for one in self._deliveries]
                if self._subscription is not None:
                    work.append(group.create_task(self._follow(self._subscription)))
                await self._changed.wait()
                for task in work:
                    task.cancel()

    async def _follow(self, subscription: Subscription) -> None:
        """Put events into the queues, after those of earlier processes."""
        with suppress(StorageError):
            await self._outbox.expire(time.time() - KEEP_SECONDS)
        await self._count()
        while True:
            await subscription.some()
            await run_to_completion(self._save(subscription.drain()))

    def _unsubscribe(self) -> list[Event]:
        """End the subscription; return its events that were not stored yet."""
        subscription, self._subscription = self._subscription, None
        self._subscribed.close()
        self._lost = 0
        return [] if subscription is None else subscription.drain()

    async def _save(self, events: list[Event]) -> None:
        rows: list[tuple[str, str]] = []
        for delivery in self._deliveries:
            wanted = [event for event in events if delivery.receiver.wants(event)]
            if delivery.is_gone:
                delivery.counters.dropped["disabled"] += len(wanted)
            else:
                rows += [(delivery.receiver.name, stored(event)) for event in wanted]
        self._count_lost()
        if not rows:
            return
        try:
            await self._outbox.add(rows, time.time())
        except StorageError as error:
            log.warning("events cannot be queued", events=len(rows), error=str(error))
            for delivery in self._deliveries:
                lost = sum(name == delivery.receiver.name for name, _ in rows)
                delivery.counters.dropped["storage"] += lost
        await self._count()

    async def _count(self) -> None:
        """Limit the queues, and wake their receivers."""
        for delivery in self._deliveries:
            receiver, counters = delivery.receiver, delivery.counters
            with suppress(StorageError):
                dropped = await self._outbox.trim(receiver.name, receiver.max_queue)
                counters.dropped["full"] += dropped
                counters.queued = self._outbox.lengths[receiver.name]
            delivery.wake()

    def _count_lost(self) -> None:
        """Count the lost events of the subscription for each receiver: all may have been for it."""
        lost = 0 if self._subscription is None else self._subscription.dropped
        for delivery in self._deliveries:
            delivery.counters.dropped["overload"] += lost - self._lost
        self._lost = lost

    def _counters(self, name: str) -> NotificationCounters:
        return self._metrics.notifications.setdefault(name, NotificationCounters())
