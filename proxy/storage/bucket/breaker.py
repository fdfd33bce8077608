"""Skips a failing bucket: for a second at first, then twice as long, up to half a minute."""

import time
from typing import Final

import structlog

from proxy.core.errors import UpstreamUnavailable

FIRST_PAUSE: Final = 1.0
LONGEST_PAUSE: Final = 30.0
PROBE_SECONDS: Final = 2.0
"""After a pause one request is sent; others are skipped for this time, or until its answer."""

log = structlog.get_logger(__name__)


class Breaker:
    """The recent failures of one bucket at one kind of work: ``reading`` or ``writing``.

    A bucket that must not be written to can still be read.
    """

    def __init__(self, name: str, work: str) -> None:
        self._name = name
        self._work = work
        self._pause = FIRST_PAUSE
        self._skip_until = float("-inf")
        self._problem: str | None = None

    @property
    def is_open(self) -> bool:
        """The bucket is skipped now."""
        return time.monotonic() < self._skip_until

    @property
    def seconds_left(self) -> float:
        """Seconds for which the bucket is still skipped; 0 if it is not."""
        return max(0.0, self._skip_until - time.monotonic())

    @property
    def problem(self) -> str | None:
        """Why the bucket was last skipped; None once it has answered since."""
        return self._problem

    def enter(self) -> None:
        """Return if a request may be sent. Raises ``UpstreamUnavailable``."""
        if self.is_open:
            raise UpstreamUnavailable("the bucket is skipped after a failure")
        if self._problem is not None:
            self._skip_until = time.monotonic() + PROBE_SECONDS

    def failed(self, problem: str) -> None:
        """Skip the bucket for a while; logged unless it has failed in the same way before."""
        if problem != self._problem:
            log.warning("the bucket is skipped", bucket=self._name, work=self._work, reason=problem)
        self._problem = problem
        self._skip_until = time.monotonic() + self._pause
        self._pause = min(self._pause * 2, LONGEST_PAUSE)

    def succeeded(self) -> None:
        """Use the bucket: it has answered."""
        if self._problem is not None:
            log.info("the bucket is used again", bucket=self._name, work=self._work)
            self._problem = None
            self._pause, self._skip_until = FIRST_PAUSE, float("-inf")
