"""When to try again, and when to leave an upstream alone. State and clock, no I/O.

A rate limit holds for what was limited (Docker Hub limits manifest GETs, not HEADs), so clients
that retry at once cost upstream nothing. Repeated failures open a circuit for the whole upstream;
one request at a time then probes it.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import structlog
from cachetools import LRUCache

from proxy.core.errors import RegistryError, TooManyRequests, UpstreamTimeout, UpstreamUnavailable

MAX_PAUSE: Final = 60.0
MAX_COOL_DOWN: Final = 900.0
MAX_OBJECTS: Final = 10_000
_PASSING: Final = (UpstreamUnavailable, UpstreamTimeout)
_FIRST_WAIT: Final = 0.2

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How patient to be; durations in seconds."""

    retries: int
    failures: int
    pause: float
    cool_down: float


class Circuit(Enum):
    """The state of an upstream's circuit. The value is its number in the metrics."""

    CLOSED = 0
    """Requests go upstream."""
    PROBING = 1
    """The next request tries whether upstream works again."""
    OPEN = 2
    """Upstream is left alone."""


class _Circuit:
    """A row of failures, and until when it keeps everybody but one probe away."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.failures = 0
        self.until = 0.0
        self.opened_at: float | None = None
        self._pause = limits.pause

    def admit(self, now: float) -> None:
        """Let a request probe whether the row has ended; the others wait for it."""
        if self.failures >= self._limits.failures:
            self.until = now + self._pause

    def failed(self, now: float) -> None:
        """Lengthen the row."""
        self.failures += 1
        if self.failures >= self._limits.failures:
            if self.opened_at is None:
                self.opened_at = now
            self.until = now + self._pause
            self._pause = min(self._pause * 2, MAX_PAUSE)


class Patience:
    """What one upstream has done to us lately. ``now`` is a monotonic clock in seconds.

    An object (a repository with a tag or digest) that upstream cannot serve has a circuit of its
    own: it must not take the whole upstream away from everybody. What cannot be reached, and the
    first failure of each object, count for the upstream.
    """

    def __init__(self, name: str, limits: Limits, now: Callable[[], float]) -> None:
        self._name = name
        self._limits = limits
        self._now = now
        self._cool_until: dict[str, float] = {}
        self._upstream = _Circuit(limits)
        self._objects: LRUCache[str, _Circuit] = LRUCache(MAX_OBJECTS)
        self._answered_at: float | None = None

    @property
    def is_open(self) -> bool:
        """The circuit is open: upstream is left alone."""
        return self._now() < self._upstream.until

    @property
    def is_up(self) -> bool:
        """Upstream has not failed since it answered last; True before the first request."""
        return self._upstream.failures == 0

    @property
    def circuit(self) -> Circuit:
        """Whether requests go upstream."""
        if self.is_open:
            return Circuit.OPEN
        return Circuit.CLOSED if self._upstream.opened_at is None else Circuit.PROBING

    @property
    def seconds_since_answer(self) -> float | None:
        """How long ago upstream answered last; None if it never did."""
        return None if self._answered_at is None else self._now() - self._answered_at

    def admit(self, kind: str, item: str) -> None:
        """Let a request of ``kind`` for ``item`` go upstream, or raise why it must not.

        Raises ``TooManyRequests`` or ``UpstreamUnavailable``, with the seconds that are left.
        """
        now = self._now()
        cooling = self._cool_until.get(kind, 0.0) - now
        if cooling > 0:
            raise _not_asked(
                TooManyRequests(
                    f"{self._name} limits our rate and is not asked again yet", retry_after=cooling
                )
            )
        circuits = [self._upstream, self._objects.get(item)]
        for circuit in circuits:
            if circuit is not None and circuit.until > now:
                raise _not_asked(
                    UpstreamUnavailable(
                        f"{self._name} failed {circuit.failures} times in a row "
                        "and is not asked again yet",
                        retry_after=circuit.until - now,
                    )
                )
        for circuit in circuits:
            if circuit is not None:
                circuit.admit(now)

    def answered(self, item: str) -> None:
        """Note that upstream works: it answered, whatever it said."""
        self._answered_at = self._now()
        if (opened_at := self._upstream.opened_at) is not None:
            away = round(self._answered_at - opened_at, 1)
            log.warning("upstream back again", upstream=self._name, away_seconds=away)
        self._upstream = _Circuit(self._limits)
        self._objects.pop(item, None)

    def failed(self, kind: str, item: str, error: RegistryError) -> None:
        """Note a failure; a rate limit without an end gets ours."""
        if isinstance(error, TooManyRequests):
            said = error.retry_after
            wait = self._limits.cool_down if said is None else max(said, 1.0)
            error.retry_after = wait
            self._cool_until[kind] = self._now() + min(wait, MAX_COOL_DOWN)
            return
        if not isinstance(error, _PASSING):
            self.answered(item)
            return
        circuit = self._objects.setdefault(item, _Circuit(self._limits))
        circuit.failed(self._now())
        unreachable = isinstance(error, UpstreamUnavailable) and not error.is_answer
        if circuit.failures == 1 or unreachable:
            self._upstream_failed(error)

    def _upstream_failed(self, error: RegistryError) -> None:
        was_open = self._upstream.opened_at is not None
        self._upstream.failed(self._now())
        if was_open or self._upstream.opened_at is None:
            return
        log.warning(
            "upstream left alone",
            upstream=self._name,
            failures=self._upstream.failures,
            pause_seconds=self._limits.pause,
            cause=error.message,
        )

    def wait_before(self, attempt: int, error: RegistryError) -> float | None:
        """Return the seconds to wait before trying again after ``attempt`` failures; None: do not.

        What is no passing failure is not tried again, nor what says ``Retry-After`` later than the
        client would wait: its caller bounds the time.
        """
        if attempt > self._limits.retries or not isinstance(error, _PASSING):
            return None
        if error.retry_after is not None:
            return error.retry_after
        return _FIRST_WAIT * (1 << (attempt - 1)) * random.uniform(0.5, 1.5)  # noqa: S311 - jitter


def _not_asked(error: RegistryError) -> RegistryError:
    """Return an error that was found without asking upstream."""
    error.was_forwarded = False
    return error
