"""The rate limit of one upstream, as the headers of its manifest responses report it.

Docker Hub sends ``ratelimit-limit: 100;w=21600``, ``ratelimit-remaining: 76;w=21600`` and
``docker-ratelimit-source`` (https://docs.docker.com/docker-hub/usage/pulls/). Without these headers
there is no limit.
"""

import re
from collections.abc import Mapping
from typing import Final

from proxy.core.records import Clock

_VALUE = re.compile(r"\s*(\d{1,9})\s*(?:;\s*w=(\d{1,9}))?.*")
DEFAULT_WINDOW: Final = 3600.0
SHORTEST_REFILL: Final = 60.0
"""Seconds that clients are told to wait at least."""


class Budget:
    """The pulls that an upstream allows in ``window`` seconds; None where it sets no limit.

    ``source`` is the account or address that the limit is for.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._empty_since: float | None = None
        self._noted_at = 0.0
        self.limit: int | None = None
        self.remaining: int | None = None
        self.window = DEFAULT_WINDOW
        self.source: str | None = None

    @property
    def share(self) -> float | None:
        """The remaining share of the limit, 0 to 1; None without a limit or a recent report."""
        is_over = self._clock() >= self._noted_at + self.window
        if self.limit is None or self.remaining is None or is_over:
            return None
        return min(1.0, self.remaining / self.limit) if self.limit else 0.0

    @property
    def is_empty(self) -> bool:
        """No pulls remain, and the limit cannot have been refilled yet."""
        return self.remaining == 0 and self.refill > 0 and self.share is not None

    @property
    def refill(self) -> float:
        """Seconds until the limit is certainly full again; 0 while pulls remain."""
        if self._empty_since is None:
            return 0.0
        return max(0.0, self._empty_since + self.window - self._clock())

    def note(self, headers: Mapping[str, str], source: str) -> None:
        """Read the headers of a manifest response."""
        limit = _VALUE.fullmatch(headers.get("ratelimit-limit", ""))
        remaining = _VALUE.fullmatch(headers.get("ratelimit-remaining", ""))
        if limit is None or remaining is None:
            if self.remaining == 0:  # a response in spite of an empty limit: it was lifted
                self.limit = self.remaining = self._empty_since = None
            return  # some responses lack the headers; the last report holds for its window
        self._noted_at = self._clock()
        self.limit, self.remaining = int(limit[1]), int(remaining[1])
        self.window = float(remaining[2] or limit[2] or DEFAULT_WINDOW)
        self.source = source[:64] or None
        if self.remaining > 0:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = self._clock()


class NoBudget(Budget):
    """For an upstream that is asked as its clients: each of them has another limit."""

    def note(self, headers: Mapping[str, str], source: str) -> None:
        """Read nothing: what one client may still pull says nothing about the others."""
