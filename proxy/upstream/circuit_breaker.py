"""When a request to an upstream is tried again, and when it is not sent at all. No I/O.

Three mechanisms, from the narrowest to the widest:

- Retries: a request that failed in passing is repeated after a growing, random delay.
- Cool-down: after a 429, requests of the same kind wait for as long as upstream said. Docker Hub
  limits GETs of manifests but not HEADs, so one kind says nothing about another.
- Circuits (https://martinfowler.com/bliki/CircuitBreaker.html): after failures in a row, requests
  fail at once, and after a pause one of them probes whether the rest may follow.
"""

import random
from collections.abc import Callable
from enum import Enum
from typing import Final

import structlog
from cachetools import LRUCache

from proxy.core.errors import RegistryError, TooManyRequests, UpstreamTimeout, UpstreamUnavailable
from proxy.settings import Patience

MAX_PAUSE: Final = 60.0
MAX_COOL_DOWN: Final = 900.0
MAX_OBJECTS: Final = 10_000
_FIRST_DELAY: Final = 0.2
_TRANSIENT: Final = (UpstreamUnavailable, UpstreamTimeout)

log = structlog.get_logger(__name__)


class CircuitState(Enum):
    """The value is the number in the metrics."""

    CLOSED = 0
    """Requests are sent."""
    PROBING = 1
    """The next request probes whether upstream works again."""
    OPEN = 2
    """No requests are sent."""


class _Circuit:
    """Failures in a row, and until when they block all requests but one probe."""

    def __init__(self, limits: Patience) -> None:
        self._limits = limits
        self._pause = limits.pause
        self.failures = 0
        self.blocked_until = 0.0
        self.opened_at: float | None = None

    def begin_probe(self, now: float) -> None:
        """Block other requests while the one that is now sent probes an open circuit."""
        if self.opened_at is not None:
            self.blocked_until = now + self._pause

    def fail(self, now: float) -> None:
        self.failures += 1
        if self.failures >= self._limits.failures:
            if self.opened_at is None:
                self.opened_at = now
            self.blocked_until = now + self._pause
            self._pause = min(self._pause * 2, MAX_PAUSE)


class CircuitBreaker:
    """The recent failures of one upstream. ``now`` is a monotonic clock in seconds.

    Besides the circuit of the upstream, each object (a repository with a tag or digest) has one: a
    broken object must not block the others. A failure counts in three cases:

    - Upstream could not be reached: for the object and for the upstream.
    - Upstream answered with a failure, the first one in a row for the object: for both, so that
      failures of many objects open the circuit of the upstream.
    - A further one of the same object: for the object only.
    """

    def __init__(self, name: str, limits: Patience, now: Callable[[], float]) -> None:
        self._name = name
        self._limits = limits
        self._now = now
        self._cool_until: LRUCache[str, float] = LRUCache(MAX_OBJECTS)
        self._upstream = _Circuit(limits)
        self._objects: LRUCache[str, _Circuit] = LRUCache(MAX_OBJECTS)
        self._answered_at: float | None = None

    @property
    def is_up(self) -> bool:
        """Upstream has not failed since its last answer; True before the first request."""
        return self._upstream.failures == 0

    @property
    def state(self) -> CircuitState:
        """The state of the circuit of the upstream."""
        if self._now() < self._upstream.blocked_until:
            return CircuitState.OPEN
        return CircuitState.PROBING if self._upstream.opened_at is not None else CircuitState.CLOSED

    @property
    def seconds_since_answer(self) -> float | None:
        """Seconds since the last answer of upstream; None if there was none."""
        return None if self._answered_at is None else self._now() - self._answered_at

    def admit(self, kind: str, item: str) -> None:
        """Return if a request of this ``kind`` for the object ``item`` may be sent.

        Raises ``TooManyRequests`` or ``UpstreamUnavailable`` with the remaining seconds.
        """
        now = self._now()
        cooling = self._cool_until.get(kind, 0.0) - now
        if cooling > 0:
            text = f"{self._name} limits our rate and is not asked again yet"
            raise _without_request(TooManyRequests(text, retry_after=cooling))
        circuits = [circuit for circuit in (self._upstream, self._objects.get(item)) if circuit]
        for circuit in circuits:
            if (left := circuit.blocked_until - now) > 0:
                failures = f"failed {circuit.failures} times in a row"
                text = f"{self._name} {failures} and is not asked again yet"
                raise _without_request(UpstreamUnavailable(text, retry_after=left))
        for circuit in circuits:
            circuit.begin_probe(now)

    def record_answer(self, item: str) -> None:
        """Close the circuits: upstream answered, whatever it said."""
        self._answered_at = self._now()
        if (opened_at := self._upstream.opened_at) is not None:
            seconds = round(self._answered_at - opened_at, 1)
            log.warning("circuit closed", upstream=self._name, open_seconds=seconds)
        self._upstream = _Circuit(self._limits)
        self._objects.pop(item, None)

    def record_failure(self, kind: str, item: str, error: RegistryError) -> None:
        """Count a failure. A 429 without ``Retry-After`` gets the configured cool-down."""
        if isinstance(error, TooManyRequests):
            wait = error.retry_after
            error.retry_after = self._limits.cool_down if wait is None else max(wait, 1.0)
            self._cool_until[kind] = self._now() + min(error.retry_after, MAX_COOL_DOWN)
            return
        if not isinstance(error, _TRANSIENT):
            self.record_answer(item)
            return
        circuit = self._objects.setdefault(item, _Circuit(self._limits))
        circuit.fail(self._now())
        is_unreachable = isinstance(error, UpstreamUnavailable) and not error.is_answer
        if circuit.failures == 1 or is_unreachable:
            self._fail_upstream(error)

    def _fail_upstream(self, error: RegistryError) -> None:
        was_open = self._upstream.opened_at is not None
        self._upstream.fail(self._now())
        if not was_open and self._upstream.opened_at is not None:
            log.warning(
                "circuit opened",
                upstream=self._name,
                failures=self._upstream.failures,
                pause_seconds=self._limits.pause,
                cause=error.message,
            )

    def retry_delay(self, failures: int, error: RegistryError) -> float | None:
        """Return the seconds until a request is repeated after ``failures`` in a row; None: never.

        ``Retry-After`` overrides the growing delay. The caller bounds it by the time that a client
        waits.
        """
        if failures > self._limits.retries or not isinstance(error, _TRANSIENT):
            return None
        if error.retry_after is not None:
            return error.retry_after
        jitter = random.uniform(0.5, 1.5)  # noqa: S311 - spreads clients, hides nothing
        return _FIRST_DELAY * jitter * (1 << (failures - 1))


def _without_request(error: RegistryError) -> RegistryError:
    """Mark an error that was found without a request to upstream."""
    error.was_forwarded = False
    return error
