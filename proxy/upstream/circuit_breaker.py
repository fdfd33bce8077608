"""When a request to an upstream is tried again, and when it is not sent at all. No I/O.

Three mechanisms, from the narrowest to the widest:

- Retries: a request with a temporary failure is repeated after a growing, random delay.
- Cool-down: after a 429, requests of the same kind wait for the time in upstream's answer. Docker
  Hub limits GETs of manifests but not HEADs, so each kind has its own cool-down.
- Circuits (https://martinfowler.com/bliki/CircuitBreaker.html): after failures in a row, requests
  fail at once, and after a pause one request probes whether upstream works again.
"""

import random
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Final

import structlog
from cachetools import LRUCache

from proxy.core.errors import RegistryError, TooManyRequests, UpstreamTimeout, UpstreamUnavailable
from proxy.runtime.events import NULL_EMITTER, Emitter, EventKind
from proxy.settings import Patience

MAX_PAUSE: Final = 60.0
MAX_COOL_DOWN: Final = 900.0
MAX_OBJECTS: Final = 10_000
MAX_SHARED_OBJECTS: Final = 100
"""Maximum number of cool-downs that are shared with other replicas."""

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
        self.failed_at = float("-inf")
        self.blocked_until = 0.0
        self.opened_at: float | None = None

    def begin_probe(self, now: float) -> None:
        """Block other requests while the one that is now sent probes an open circuit."""
        if self.opened_at is not None:
            self.blocked_until = now + self._pause

    def fail(self, now: float) -> None:
        self.failures += 1
        self.failed_at = now
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

    def __init__(
        self,
        name: str,
        limits: Patience,
        now: Callable[[], float],
        on_change: Callable[[], None] = lambda: None,
        emitter: Emitter = NULL_EMITTER,
    ) -> None:
        """``on_change`` is called when requests are blocked, and when they are sent again.

        ``emitter`` gets the changes that this replica has detected, not those of other replicas.
        """
        self._name = name
        self._on_change = on_change
        self._emitter = emitter
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
        """Close the circuits: upstream answered."""
        self._answered_at = self._now()
        if (opened_at := self._upstream.opened_at) is not None:
            seconds = round(self._answered_at - opened_at, 1)
            log.warning("circuit closed", upstream=self._name, open_seconds=seconds)
            self._emitter.emit(EventKind.UPSTREAM_UP, self._name, seconds_down=seconds)
        self._upstream = _Circuit(self._limits)
        if opened_at is not None:
            self._on_change()
        self._objects.pop(item, None)

    def record_failure(self, kind: str, item: str, error: RegistryError) -> None:
        """Count a failure. A 429 without ``Retry-After`` gets the configured cool-down."""
        if isinstance(error, TooManyRequests):
            wait = error.retry_after
            error.retry_after = self._limits.cool_down if wait is None else max(wait, 1.0)
            self._cool_until[kind] = self._now() + min(error.retry_after, MAX_COOL_DOWN)
            self._on_change()
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
        if self._upstream.opened_at is not None:
            self._on_change()
        if not was_open and self._upstream.opened_at is not None:
            log.warning(
                "circuit opened",
                upstream=self._name,
                failures=self._upstream.failures,
                pause_seconds=self._limits.pause,
                cause=error.message,
            )
            self._emitter.emit(EventKind.UPSTREAM_DOWN, self._name, cause=error.message)

    def shared_state(self) -> dict[str, object]:
        """Return the state for another replica, as JSON values with ages and rests in seconds."""
        now, circuit = self._now(), self._upstream
        cooling = {kind: until - now for kind, until in self._cool_until.items() if until > now}
        return {
            "cooling": dict(list(cooling.items())[-MAX_SHARED_OBJECTS:]),
            "is_open": circuit.opened_at is not None,
            "failed_age": None if circuit.failures == 0 else now - circuit.failed_at,
            "answered_age": None if self._answered_at is None else now - self._answered_at,
            "blocked": max(0.0, circuit.blocked_until - now),
        }

    def apply_shared_state(self, state: Mapping[str, object], seconds_ago: float) -> None:
        """Adopt the newer parts of another replica's state from ``seconds_ago``.

        - A cool-down applies to all replicas; the longest one counts.
        - An open circuit opens this one, unless upstream has answered here since its last failure.
        - An answer to the other replica closes this circuit, unless it failed here since then.
        """
        now = self._now()
        cooling = state.get("cooling")
        for kind, left in cooling.items() if isinstance(cooling, dict) else ():
            if isinstance(left, int | float) and left > seconds_ago:
                until = now + min(left - seconds_ago, MAX_COOL_DOWN)
                self._cool_until[kind] = max(until, self._cool_until.get(kind, 0.0))
        answered_age, failed_age = state.get("answered_age"), state.get("failed_age")
        if state.get("is_open") is True and isinstance(failed_age, int | float):
            self._apply_open_state(
                now - seconds_ago - failed_age, state.get("blocked"), seconds_ago
            )
        elif isinstance(answered_age, int | float):
            is_newer = now - seconds_ago - answered_age > self._upstream.failed_at
            if self._upstream.opened_at is not None and is_newer:
                log.warning("circuit closed by another replica", upstream=self._name)
                self._upstream = _Circuit(self._limits)

    def _apply_open_state(self, failed_at: float, blocked: object, seconds_ago: float) -> None:
        circuit, now = self._upstream, self._now()
        answered_at = float("-inf") if self._answered_at is None else self._answered_at
        if failed_at <= max(answered_at, circuit.failed_at) or not isinstance(blocked, int | float):
            return
        if circuit.opened_at is None:
            circuit.opened_at = failed_at
            log.warning("circuit opened by another replica", upstream=self._name)
        circuit.failed_at = failed_at
        circuit.failures = max(circuit.failures, self._limits.failures)
        until = now + min(blocked, MAX_PAUSE) - seconds_ago
        circuit.blocked_until = max(circuit.blocked_until, until)

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
