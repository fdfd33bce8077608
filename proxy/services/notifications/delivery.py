"""Delivers the events of one receiver: in order, one at a time, with retries."""

import asyncio
import random
import time
from contextlib import suppress
from enum import Enum, auto
from typing import Final, NamedTuple

import structlog
from aiohttp import ClientError, ClientSession, ClientTimeout

from proxy.core.errors import StorageError
from proxy.index.outbox import Outbox, Waiting
from proxy.runtime.part_counters import NotificationCounters
from proxy.services.notifications.receivers import Receiver
from proxy.upstream.headers import retry_after

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 300.0
"""Maximum number of seconds between two requests to a receiver that fails."""

LONGEST_DELAY: Final = 3600.0
"""Maximum number of seconds until one event is tried again."""

MAX_REFUSALS: Final = 5
"""Attempts to deliver an event that the receiver rejects."""

_TRANSIENT: Final = (408, 425, 429)

log = structlog.get_logger(__name__)


class _End(Enum):
    DELIVERED = auto()
    FAILED = auto()
    """A retry may succeed."""
    REFUSED = auto()
    """The receiver rejects the request; a retry is unlikely to succeed."""
    GONE = auto()
    """The receiver asked for no more events (Standard Webhooks: 410)."""


class _Answer(NamedTuple):
    """The result of a request, its reason, and the seconds to wait."""

    end: _End
    cause: str
    wait: float | None = None


class Delivery:
    """Delivers the queue of one receiver. ``source`` is the URI of this Millpond."""

    def __init__(
        self,
        receiver: Receiver,
        outbox: Outbox,
        session: ClientSession,
        counters: NotificationCounters,
        source: str,
    ) -> None:
        self.receiver: Final = receiver
        self.counters: Final = counters
        self._outbox = outbox
        self._session = session
        self._source = source
        self._added = asyncio.Event()
        self._failures = 0
        self.is_gone = False
        """The receiver asked for no more events."""

    def wake(self) -> None:
        """Check the queue: an event was added."""
        self._added.set()

    async def run(self) -> None:
        """Deliver until the receiver asks for no more events, or until cancelled."""
        while not self.is_gone:
            self._added.clear()
            try:
                found = await self._outbox.next(self.receiver.name)
                if isinstance(found, Waiting):
                    await self._deliver(found)
                    continue
            except StorageError as error:
                log.warning("queued events cannot be read", error=str(error))
                found = LONGEST_PAUSE
            with suppress(TimeoutError):
                async with asyncio.timeout(found):
                    await self._added.wait()

    async def _deliver(self, waiting: Waiting) -> None:
        """Try an event once. Raises ``StorageError``."""
        if time.time() - waiting.added_at > self.receiver.retry_for:
            await self._drop(waiting, "expired")
            return
        answer = await self._post(waiting)
        if answer.end is _End.DELIVERED:
            self._failures = 0
            self.counters.delivered += 1
            await self._remove(waiting)
            return
        self._failures += 1
        self.counters.failures += 1
        self._report(answer)
        if answer.end is _End.GONE:
            self.is_gone = self.counters.is_disabled = True
            return
        if answer.end is _End.REFUSED and waiting.attempts + 1 >= MAX_REFUSALS:
            await self._drop(waiting, "refused")
        else:
            await self._outbox.postpone(waiting, backoff(waiting.attempts, LONGEST_DELAY))
        await asyncio.sleep(max(backoff(self._failures - 1, LONGEST_PAUSE), answer.wait or 0.0))

    async def _drop(self, waiting: Waiting, reason: str) -> None:
        self.counters.dropped[reason] += 1
        await self._remove(waiting)

    async def _remove(self, waiting: Waiting) -> None:
        name = self.receiver.name
        await self._outbox.remove(name, waiting)
        self.counters.queued = self._outbox.lengths[name]

    async def _post(self, waiting: Waiting) -> _Answer:
        receiver = self.receiver
        headers, body = receiver.request(waiting.message, waiting.event, self._source)
        try:
            async with self._session.post(
                receiver.url,
                data=body,
                headers=headers,
                allow_redirects=False,
                ssl=receiver.tls,
                timeout=ClientTimeout(total=receiver.timeout),
            ) as response:
                return _judged(response.status, retry_after(response.headers))
        except TimeoutError:
            return _Answer(_End.FAILED, "it does not answer in time")
        except (ClientError, OSError, ValueError) as error:
            # The text of an error may contain the URL, which may be secret.
            return _Answer(_End.FAILED, f"it cannot be reached ({type(error).__name__})")

    def _report(self, answer: _Answer) -> None:
        """Log the first failure in a row, and the end of all delivery."""
        name, cause = self.receiver.name, answer.cause
        if answer.end is _End.GONE:
            log.warning("receiver of events is disabled until the next reload", receiver=name)
        elif self._failures == 1:
            log.warning("event not delivered", receiver=name, cause=cause)
        else:
            log.debug("event not delivered", receiver=name, cause=cause)


def _judged(status: int, wait: float | None) -> _Answer:
    """Return the meaning of a status (Standard Webhooks, "Deliverability and reliability")."""
    cause = f"it answers {status}"
    if 200 <= status < 300:
        return _Answer(_End.DELIVERED, cause)
    if status == 410:
        return _Answer(_End.GONE, cause)
    is_transient = status >= 500 or status in _TRANSIENT
    return _Answer(_End.FAILED if is_transient else _End.REFUSED, cause, wait)


def backoff(failures: int, longest: float) -> float:
    """Return how many seconds to wait after so many earlier failures, with jitter."""
    jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads requests, hides nothing
    return min(longest, FIRST_PAUSE * float(2 ** min(failures, 32))) * jitter
