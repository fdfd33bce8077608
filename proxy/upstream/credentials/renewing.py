"""Values that expire: renewed before that, by one task for all callers.

There are three cases. A value that expires soon is renewed in the background; if that fails, it
stays in use until it expires. Without a value all callers wait for one request, whose failure is
cached for ``FAILURE_PAUSE``. A value that upstream refuses is renewed at once, but at most every
``MIN_LIFE``: a registry that refuses everything does not start a program per request.
"""

import random
import time
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, NamedTuple, TypeVar

import structlog
from cachetools import LRUCache

from proxy.core.errors import CredentialsRejected, UpstreamFailure
from proxy.runtime.singleflight import SingleFlight
from proxy.upstream.credentials import Credential

MIN_LIFE: Final = 60.0
LONGEST_LIFE: Final = 86400.0
UNKNOWN_LIFE: Final = 600.0
"""Seconds that a value is used whose source names no time, or one in the past."""

FAILURE_PAUSE: Final = 5.0
RETRY_PAUSE: Final = 30.0
"""Seconds until the next attempt to renew a value that is still valid."""

MAX_KEYS: Final = 1000

Value = TypeVar("Value")
log = structlog.get_logger(__name__)


class Issued(NamedTuple, Generic[Value]):
    """A new value and its life in seconds; None if unknown."""

    value: Value
    life: float | None = None


Fetch = Callable[[], Coroutine[Any, Any, Issued[Value]]]
"""Gets a new value. Raises ``UpstreamFailure``."""


@dataclass(slots=True)
class _Entry(Generic[Value]):
    value: Value = field(repr=False)
    asked_at: float
    renew_at: float
    expires_at: float


class _Failed(NamedTuple):
    message: str
    until: float


class RenewingCache(Generic[Value]):
    """Values by key. ``kind`` names their source in the log; ``clock`` returns seconds."""

    def __init__(self, kind: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._kind = kind
        self._clock = clock
        self._held: LRUCache[Hashable, _Entry[Value]] = LRUCache(MAX_KEYS)
        self._failed: LRUCache[Hashable, _Failed] = LRUCache(MAX_KEYS)
        self._flights: SingleFlight[Value] = SingleFlight(f"credentials {kind}")

    async def get(self, key: Hashable, fetch: Fetch[Value]) -> Value:
        """Return the value for ``key``. Raises ``UpstreamFailure``."""
        held, now = self._held.get(key), self._clock()
        if held is None or now >= held.expires_at:
            failed = self._failed.get(key)
            if failed is not None and now < failed.until:
                raise CredentialsRejected(failed.message)
            return await self._flights.do(key, lambda: self._renew(key, fetch))
        if now >= held.renew_at:
            self._flights.start(key, lambda: self._renew(key, fetch))
        return held.value

    async def renew(self, key: Hashable, fetch: Fetch[Value], refused: Value) -> Value:
        """Return the value for ``key`` after upstream refused one. Raises as ``get``."""
        held = self._held.get(key)
        if held is None or held.value != refused:
            return await self.get(key, fetch)
        if self._clock() < held.asked_at + MIN_LIFE:
            return refused
        return await self._flights.do(key, lambda: self._renew(key, fetch))

    @property
    def expires_in(self) -> float | None:
        """Seconds until the first value expires, None without a value."""
        ends = [held.expires_at for held in self._held.values()]
        return max(0.0, min(ends) - self._clock()) if ends else None

    async def close(self) -> None:
        """Cancel the running requests."""
        await self._flights.close()

    async def _renew(self, key: Hashable, fetch: Fetch[Value]) -> Value:
        """Return a new value, or the present one if there is no new one and it is valid."""
        try:
            value, life = await fetch()
        except UpstreamFailure as error:
            held, now = self._held.get(key), self._clock()
            if held is None or now >= held.expires_at:
                self._failed[key] = _Failed(error.message, now + FAILURE_PAUSE)
                raise
            held.asked_at, held.renew_at = now, now + RETRY_PAUSE
            left = round(held.expires_at - now)
            log.warning(
                "credentials not renewed", kind=self._kind, reason=error.message, expires_in=left
            )
            return held.value
        now, life = self._clock(), _clamped(life)
        share = random.uniform(0.75, 0.85)  # noqa: S311 - spreads requests, hides nothing
        self._held[key] = _Entry(value, now, now + life * share, now + life)
        self._failed.pop(key, None)
        return value


class RenewingCredentials:
    """One credential for the whole registry, from a source that ``fetch`` asks."""

    def __init__(
        self,
        kind: str,
        fetch: Fetch[Credential | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.kind: Final = kind
        self._fetch = fetch
        self._renewing: RenewingCache[Credential | None] = RenewingCache(kind, clock)

    async def get(self, repository: str) -> Credential | None:
        """Return the credential; one request for all that wait."""
        return await self._renewing.get("", self._fetch)

    async def renew(self, repository: str, refused: Credential) -> Credential | None:
        """Return the credential, renewed if it is still the refused one."""
        return await self._renewing.renew("", self._fetch, refused)

    @property
    def expires_in(self) -> float | None:
        """Seconds until the credential expires."""
        return self._renewing.expires_in

    async def close(self) -> None:
        """Cancel a running request."""
        await self._renewing.close()


def _clamped(life: float | None) -> float:
    """Return a life within bounds. A time in the past, or not a number, is as good as none."""
    if life is None or not life > 0:
        return UNKNOWN_LIFE
    return min(max(life, MIN_LIFE), LONGEST_LIFE)
