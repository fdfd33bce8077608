"""Failed logins by address and user: each failure adds delay, and then the client must wait.

Users and addresses are both counted, so that trying one password for many users is slowed too.
"""

import asyncio
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from proxy.access.principals import network_of
from proxy.core.errors import TooManyFailures

MAX_ENTRIES: Final = 10_000
FREE: Final = 2
"""Failures without a delay: people mistype."""

FIRST_DELAY: Final = 0.25
LONGEST_DELAY: Final = 4.0
"""Seconds; clients wait much longer for an answer."""

PER_USER: Final = 10
"""Failures of one user from one address after which further logins are refused for a time."""

PER_ADDRESS: Final = 100
FORGET_SECONDS: Final = 60.0
"""Each failure is forgotten after this time."""

MAX_SLEEPERS: Final = 500


@dataclass(slots=True)
class _Entry:
    """Failures, of which one expires per ``FORGET_SECONDS``."""

    count: float
    at: float

    def left(self, now: float) -> float:
        return max(0.0, self.count - (now - self.at) / FORGET_SECONDS)


class Failures:
    """The failures of the last minutes; at the limit the oldest are dropped."""

    def __init__(self) -> None:
        self._entries: OrderedDict[tuple[str, str | None], _Entry] = OrderedDict()
        self._sleepers = 0

    def admit(self, address: str | None, user: str) -> None:
        """Return if the client may try. Raises ``TooManyFailures``."""
        now, network = time.monotonic(), network_of(address)
        for key, limit in (((network, user), PER_USER), ((network, None), PER_ADDRESS)):
            entry = self._entries.get(key)
            if entry is not None and (excess := entry.left(now) - limit + 1) > 0:
                raise TooManyFailures(
                    "too many failed logins; wait, and check user and password",
                    retry_after=excess * FORGET_SECONDS,
                )

    def add(self, address: str | None, user: str) -> None:
        """Count a failure."""
        now, network = time.monotonic(), network_of(address)
        for key in ((network, user), (network, None)):
            entry = self._entries.pop(key, None)
            count = 0.0 if entry is None else entry.left(now)
            while len(self._entries) >= MAX_ENTRIES:
                self._entries.popitem(last=False)
            self._entries[key] = _Entry(count + 1, now)

    def forget(self, address: str | None, user: str) -> None:
        """Forget the failures of a user who has succeeded, but not those of the address."""
        self._entries.pop((network_of(address), user), None)

    def delay(self, address: str | None, user: str) -> float:
        """Return how many seconds the answer to a failed login should wait."""
        entry = self._entries.get((network_of(address), user))
        excess = 0 if entry is None else entry.left(time.monotonic()) - FREE
        return 0.0 if excess <= 0 else min(FIRST_DELAY * 2.0**excess, LONGEST_DELAY)

    async def slow_down(self, address: str | None, user: str) -> None:
        """Wait for the delay; with too many waiting clients return at once."""
        delay = self.delay(address, user)
        if not delay or self._sleepers >= MAX_SLEEPERS:
            return
        self._sleepers += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._sleepers -= 1
