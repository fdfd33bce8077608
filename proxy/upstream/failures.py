"""Says in the log why an upstream fails and what clients got instead.

A failing upstream fails for every request, so each cause is logged once a minute and counted in
between. Only the host of an address is logged: its query may hold a signature.
"""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

import structlog
from cachetools import LRUCache

from proxy.core.errors import RegistryError, UpstreamFailure

QUIET_SECONDS: Final = 60.0
MAX_CAUSES: Final = 100
MAX_LINES: Final = 20
"""Of all causes in ``QUIET_SECONDS``: a hostile registry can redirect to a new host each time."""


log = structlog.get_logger(__name__)


class _Cause(NamedTuple):
    """What makes two failures the same."""

    kind: str
    status: int | None
    host: str | None
    trouble: str | None
    number: int | None


class _Logged:
    """When a cause was logged last, in seconds of the clock, and how often it came since."""

    __slots__ = ("at", "suppressed")

    def __init__(self, at: float) -> None:
        self.at = at
        self.suppressed = 0


class FailureLog:
    """The failures of one upstream. ``host`` is the registry's own; ``now`` in seconds."""

    def __init__(self, name: str, host: str, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._host = host
        self._now = now
        self._logged: LRUCache[_Cause, _Logged] = LRUCache(MAX_CAUSES)
        self._lines: deque[float] = deque(maxlen=MAX_LINES)
        self._unnamed = 0

    def report(self, error: RegistryError, served: str) -> None:
        """Log a failure and what was served instead, unless its cause was logged a moment ago.

        Errors that are no failures of upstream, or found without asking it, are not logged.
        """
        if not isinstance(error, UpstreamFailure) or not error.was_forwarded:
            return
        now, cause = self._now(), _cause(error)
        last = self._logged.get(cause)
        if last is not None and now - last.at < QUIET_SECONDS:
            last.suppressed += 1
            return
        if len(self._lines) == MAX_LINES and now - self._lines[0] < QUIET_SECONDS:
            self._unnamed += 1
            return
        self._lines.append(now)
        self._logged[cause] = _Logged(now)
        before = (0 if last is None else last.suppressed) + self._unnamed
        self._unnamed = 0
        log.warning(
            "upstream failed",
            upstream=self._name,
            host=error.host or self._host,
            cause=error.message,
            served=served,
            suppressed=before,
        )


def _cause(error: RegistryError) -> _Cause:
    """Return what the error has in common with others that have the same reason.

    Not its message, which names what was asked for.
    """
    trouble = error.__cause__
    below = getattr(trouble, "os_error", trouble)
    return _Cause(
        type(error).__name__,
        error.upstream_status,
        error.host,
        None if trouble is None else type(trouble).__name__,
        getattr(below, "errno", None),
    )
