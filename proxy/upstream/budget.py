"""What an upstream says of its rate limit, from the headers of manifest answers.

Docker Hub: ``ratelimit-limit: 100;w=21600``, ``ratelimit-remaining: 76;w=21600`` and
``docker-ratelimit-source``. Headers may be absent: then there is no limit.
"""

import re
from collections.abc import Mapping
from typing import Final

from proxy.core.records import Clock

_VALUE = re.compile(r"\s*(\d{1,9})\s*(?:;\s*w=(\d{1,9}))?.*")
DEFAULT_WINDOW: Final = 3600.0
SHORTEST_REFILL: Final = 60.0


class Budget:
    """What is left of one upstream's limit; None where there is none."""

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
        """What is left as a share of the limit, 0 to 1; None without a limit."""
        if self.limit is None or self.remaining is None or self._is_over:
            return None
        return min(1.0, self.remaining / self.limit) if self.limit else 0.0

    @property
    def is_empty(self) -> bool:
        """Nothing is left, and it cannot have been refilled yet."""
        return self.remaining == 0 and self.refill > 0 and not self._is_over

    @property
    def _is_over(self) -> bool:
        """What was said is so old that everything has been filled again."""
        return self._clock() >= self._noted_at + self.window

    @property
    def refill(self) -> float:
        """Seconds until the limit is certainly filled again; 0 when something is left."""
        if self._empty_since is None:
            return 0.0
        return max(0.0, self._empty_since + self.window - self._clock())

    def note(self, headers: Mapping[str, str], source: str) -> None:
        """Learn from the headers of an answer; ``source`` is whom the limit is for."""
        limit = _VALUE.fullmatch(headers.get("ratelimit-limit", ""))
        remaining = _VALUE.fullmatch(headers.get("ratelimit-remaining", ""))
        if limit is None or remaining is None:
            if self.remaining == 0:  # an answer where none was due: there is no limit any more
                self.limit = self.remaining = self._empty_since = None
            return  # some answers never carry them; what is known ends with its window
        self._noted_at = self._clock()
        self.limit, self.remaining = int(limit[1]), int(remaining[1])
        self.window = float(remaining[2] or limit[2] or DEFAULT_WINDOW)
        self.source = source[:64] or None
        if self.remaining > 0:
            self._empty_since = None
        elif self._empty_since is None:
            self._empty_since = self._clock()
