"""The rate limit of one upstream, as the headers of its manifest responses report it.

Docker Hub sends ``ratelimit-limit: 100;w=21600``, ``ratelimit-remaining: 76;w=21600`` and
``docker-ratelimit-source`` (https://docs.docker.com/docker-hub/usage/pulls/). Without these headers
there is no limit.
"""

import re
from collections.abc import Callable, Mapping
from typing import Final

from proxy.core.records import Clock

_VALUE = re.compile(r"\s*(\d{1,9})\s*(?:;\s*w=(\d{1,9}))?.*")
DEFAULT_WINDOW: Final = 3600.0
SHORTEST_REFILL: Final = 60.0
"""Minimum ``Retry-After`` for clients, in seconds."""

LOW: Final = 0.2
"""Below this share of the limit few pulls are left."""

_RECOVERED: Final = 0.5
"""Above this share the limit was refilled. A sliding window gives pulls back one by one, so that
the share may cross ``LOW`` many times."""


class Budget:
    """The pulls that an upstream allows in ``window`` seconds; None where it sets no limit.

    ``source`` is the account or address that the limit is for.
    """

    def __init__(
        self,
        clock: Clock,
        on_report: Callable[[], None] = lambda: None,
        on_low: Callable[["Budget"], None] = lambda _: None,
    ) -> None:
        """``on_report`` is called for each report of the upstream.

        ``on_low`` is called when few pulls are left, once until the limit is refilled.
        """
        self._clock = clock
        self._on_report = on_report
        self._on_low = on_low
        self._low_until = 0.0
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

    @property
    def refills_at(self) -> float | None:
        """When the limit is certainly full again (Unix seconds); None as for ``share``."""
        if self.share is None:
            return None
        since = self._noted_at if self._empty_since is None else self._empty_since
        return since + self.window

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
        self._on_report()
        self._watch()

    def _watch(self) -> None:
        share = self.share
        if share is None or share > _RECOVERED:
            self._low_until = 0.0
        elif share < LOW and self._clock() >= self._low_until:
            self._low_until = self.refills_at or 0.0
            self._on_low(self)

    def shared_state(self) -> dict[str, object]:
        """Return the last report for another replica, as JSON values with ages in seconds."""
        if self.limit is None:
            return {}
        now, empty = self._clock(), self._empty_since
        return {
            "limit": self.limit,
            "remaining": self.remaining,
            "window": self.window,
            "source": self.source,
            "age": now - self._noted_at,
            "empty_age": None if empty is None else now - empty,
        }

    def apply_shared_state(self, state: Mapping[str, object], seconds_ago: float) -> None:
        """Adopt the report of another replica from ``seconds_ago``, if it is newer.

        Reports for another account or address are ignored.
        """
        limit, remaining, window = (state.get(name) for name in ("limit", "remaining", "window"))
        age, empty_age, source = (state.get(name) for name in ("age", "empty_age", "source"))
        if not (isinstance(limit, int) and isinstance(remaining, int)):
            return
        if not (isinstance(window, int | float) and isinstance(age, int | float)):
            return
        noted_at = self._clock() - seconds_ago - age
        if noted_at <= self._noted_at or (self.source is not None and source != self.source):
            return
        self.limit, self.remaining, self.window = limit, remaining, float(window)
        self.source = source if isinstance(source, str) else None
        self._noted_at = noted_at
        self._empty_since = None
        if remaining == 0 and isinstance(empty_age, int | float):
            self._empty_since = self._clock() - seconds_ago - empty_age


class NoBudget(Budget):
    """The budget of an upstream with ``credentials: caller``: each client has another limit."""

    def note(self, headers: Mapping[str, str], source: str) -> None:
        """Do nothing: the limit of one client does not apply to others."""
