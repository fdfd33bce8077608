"""When to try again, and when to leave an upstream alone. State and clock, no I/O.

A rate limit holds for what was limited (Docker Hub limits manifest GETs, not HEADs), so clients
that retry at once cost upstream nothing. Repeated failures open a circuit for the whole upstream;
one request at a time then probes it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from proxy.errors import RegistryError, TooManyRequests, UpstreamFailure, UpstreamUnavailable

MAX_PAUSE: Final = 60.0
MAX_COOL_DOWN: Final = 900.0
_FIRST_WAIT: Final = 0.2


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient to be; durations in seconds."""

    retries: int
    failures: int
    pause: float
    cool_down: float


class Patience:
    """What one upstream has done to us lately. ``now`` is a monotonic clock in seconds."""

    def __init__(self, name: str, limits: Limits, now: Callable[[], float]) -> None:
        self._name = name
        self._limits = limits
        self._now = now
        self._cool_until: dict[str, float] = {}
        self._failures = 0
        self._closed_from = 0.0
        self._pause = limits.pause

    @property
    def is_open(self) -> bool:
        """The circuit is open: upstream is left alone."""
        return self._now() < self._closed_from

    def admit(self, kind: str) -> None:
        """Let a request of ``kind`` go upstream, or raise why it must not.

        Raises ``TooManyRequests`` or ``UpstreamUnavailable``, with the seconds that are left.
        """
        now = self._now()
        cooling = self._cool_until.get(kind, 0.0) - now
        if cooling > 0:
            raise TooManyRequests(
                f"{self._name} limits our rate and is not asked again yet", retry_after=cooling
            )
        closed = self._closed_from - now
        if closed > 0:
            raise UpstreamUnavailable(
                f"{self._name} failed {self._failures} times in a row and is not asked again yet",
                retry_after=closed,
            )
        if self._failures >= self._limits.failures:
            self._closed_from = now + self._pause  # this request probes; the others wait for it

    def answered(self) -> None:
        """Note that upstream works: it answered, whatever it said."""
        self._failures = 0
        self._closed_from = 0.0
        self._pause = self._limits.pause

    def failed(self, kind: str, error: RegistryError) -> None:
        """Note a failure."""
        if isinstance(error, TooManyRequests):
            wait = self._limits.cool_down if error.retry_after is None else error.retry_after
            self._cool_until[kind] = self._now() + min(wait, MAX_COOL_DOWN)
            return
        if not isinstance(error, UpstreamFailure):
            self.answered()
            return
        self._failures += 1
        if self._failures >= self._limits.failures:
            self._closed_from = self._now() + self._pause
            self._pause = min(self._pause * 2, MAX_PAUSE)

    def wait_before(self, attempt: int, error: RegistryError) -> float | None:
        """Return the seconds to wait before trying again after ``attempt`` failures; None: do not.

        What is no passing failure is not tried again, nor what says ``Retry-After`` later than the
        client would wait: its caller bounds the time.
        """
        if attempt > self._limits.retries or not isinstance(error, UpstreamUnavailable):
            return None
        if error.retry_after is not None:
            return error.retry_after
        return _FIRST_WAIT * (1 << (attempt - 1)) * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
