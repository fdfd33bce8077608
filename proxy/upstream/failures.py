"""Logs why an upstream fails and which answer clients got instead.

A failing upstream fails every request, so each cause is logged once a minute and counted in
between. Of a URL only the host is logged: the query may hold a signature.
"""

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import structlog
from cachetools import LRUCache

from proxy.core.errors import RegistryError, UpstreamFailure

QUIET_SECONDS: Final = 60.0
MAX_CAUSES: Final = 100
MAX_LINES: Final = 20
"""Lines in ``QUIET_SECONDS``. A hostile registry can redirect to a new host for each request, and
so make up any number of causes."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Logged:
    """When a cause was logged last, and how many failures were suppressed since."""

    at: float
    suppressed: int = 0


class FailureLog:
    """The failures of one upstream. ``host`` is the host of the registry; ``now`` in seconds."""

    def __init__(self, name: str, host: str, now: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._host = host
        self._now = now
        self._logged: LRUCache[object, _Logged] = LRUCache(MAX_CAUSES)
        self._lines: deque[float] = deque(maxlen=MAX_LINES)
        self._suppressed = 0

    def report(self, error: RegistryError, served: str) -> None:
        """Log a failure and what was ``served`` instead, unless its cause was logged recently.

        Errors that are not failures of the upstream, or that needed no request, are ignored.
        """
        if not isinstance(error, UpstreamFailure) or not error.was_forwarded:
            return
        now, cause = self._now(), _cause(error)
        last = self._logged.get(cause)
        if last is not None and now - last.at < QUIET_SECONDS:
            last.suppressed += 1
            return
        if len(self._lines) == MAX_LINES and now - self._lines[0] < QUIET_SECONDS:
            self._suppressed += 1
            return
        self._lines.append(now)
        self._logged[cause] = _Logged(now)
        log.warning(
            "upstream failed",
            upstream=self._name,
            host=error.host or self._host,
            cause=error.message,
            served=served,
            suppressed=self._suppressed + (0 if last is None else last.suppressed),
        )
        self._suppressed = 0


def _cause(error: RegistryError) -> object:
    """Return a key that is equal for failures with the same reason.

    The message is not part of it, because it names what was requested.
    """
    trouble = error.__cause__
    number = getattr(getattr(trouble, "os_error", trouble), "errno", None)
    return type(error), error.upstream_status, error.host, type(trouble), number
