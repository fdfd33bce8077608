"""Limits for each client: requests per second, bytes per second, and concurrent downloads.

A client is identified by its user, else by its address; an IPv6 host has a whole /64, so a /64
counts as one address. Requests above a limit wait their turn; they are refused only after
``MAX_WAIT``, because dockerd goes to the registry itself after 429, and containerd repeats at once.
Clients wait 30 seconds for headers. This module does not depend on HTTP: ``web`` calls it before it
answers and before it sends.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final

import structlog

from proxy.access.principals import Principal, network_of
from proxy.core.errors import RateLimited
from proxy.runtime.part_counters import LimitCounters
from proxy.runtime.token_bucket import TokenBucket
from proxy.settings.access import Access, Limits

MAX_WAIT: Final = 10.0
"""Seconds that a request waits for its turn, and then again for a free download."""

MAX_WAITING: Final = 1000
"""Maximum number of waiting requests of one client."""

REQUEST_BURST: Final = 2.0
"""Seconds' worth of requests that an idle client may send at once."""

BYTE_BURST: Final = 1.0
"""Seconds' worth of bytes that an idle client receives at once."""

MIN_PIECE: Final = 4 * 1024
PIECES_PER_SECOND: Final = 20
"""Number of pieces into which the bytes of a second are cut, so that transfers share evenly."""

KEPT: Final = 1024
"""Number of idle clients that are kept for the statistics."""

MAX_CLIENTS: Final = 65_536
"""At this number the client that was seen longest ago is dropped, with its limits."""

LOG_SECONDS: Final = 10.0
"""Refusals are logged once in this time, and counted in between."""

log = structlog.get_logger(__name__)


class Client:
    """One client: its remaining budget, and its counters."""

    __slots__ = (
        *("_bytes", "_owner", "_requests", "delayed", "downloads", "name"),
        *("refused", "requests", "seen", "sent", "waiting"),
    )

    def __init__(self, name: str, owner: "ClientLimits") -> None:
        self.name = name
        self.requests = self.sent = self.delayed = self.refused = 0
        self.waiting = 0
        self.seen = owner.now()
        self.downloads = _Downloads()
        self._owner = owner
        self._requests: TokenBucket | None = None
        self._bytes: TokenBucket | None = None
        self.use(owner.limits)

    def use(self, limits: Limits) -> None:
        """Use these limits from now on; requests that already wait are not affected."""
        now = self._owner.now()
        rate, speed = limits.requests_per_second, limits.bytes_per_second or None
        burst = None if rate is None else max(1.0, rate * REQUEST_BURST)
        self._requests = _bucket(self._requests, rate, burst, now)
        self._bytes = _bucket(
            self._bytes, speed, None if speed is None else speed * BYTE_BURST, now
        )
        self.downloads.use(limits.downloads)

    @property
    def is_paced(self) -> bool:
        """Its transfers are limited, in bytes per second or in number."""
        limits = self._owner.limits
        return bool(limits.bytes_per_second) or limits.downloads is not None

    def is_idle(self, now: float) -> bool:
        """Return True if the client is inactive and its budgets are full again."""
        buckets = (self._requests, self._bytes)
        is_full = all(bucket is None or bucket.is_full(now) for bucket in buckets)
        return is_full and not self.waiting and not self.downloads.active

    def try_request(self, size: int) -> bool:
        """Count a request of ``size`` bytes and return True; return False if it has to wait."""
        now = self._owner.now()
        for bucket, least in ((self._requests, 1.0), (self._bytes, 0.0)):
            if bucket is not None and bucket.seconds_until(least, now) > 0:
                return False
        if self._requests is not None:
            self._requests.take(1, now)
        if self._bytes is not None:
            self._bytes.take(size, now)
        self.requests += 1
        self.sent += size
        return True

    async def admit(self) -> None:
        """Wait until a request may be answered. Raises ``RateLimited``."""
        self.requests += 1
        if (bucket := self._requests) is None:
            return
        now = self._owner.now()
        wait = bucket.seconds_until(1, now)
        if wait > MAX_WAIT or (wait and self.waiting >= MAX_WAITING):
            raise self._refusal("requests", wait)
        bucket.take(1, now)
        if wait:
            await self._wait("requests", wait)

    async def acquire(self, most: int) -> int:
        """Wait until bytes may be sent; return how many, at least one and at most ``most``."""
        bucket, speed = self._bytes, self._owner.limits.bytes_per_second
        if bucket is None or not speed:
            return most
        size = min(most, max(MIN_PIECE, speed // PIECES_PER_SECOND))
        if wait := bucket.take(size, self._owner.now()):
            try:
                await self._wait("bytes", wait)
            except asyncio.CancelledError:
                self.refund(size)
                raise
        return size

    async def acquire_small(self, size: int) -> None:
        """Wait until a body may be sent, but not longer than clients wait for headers."""
        if self._bytes is not None and (wait := self._bytes.take(size, self._owner.now())):
            await self._wait("bytes", min(wait, MAX_WAIT))

    def refund(self, size: int) -> None:
        """Return acquired bytes that were not sent."""
        if self._bytes is not None:
            self._bytes.refund(size)

    @contextmanager
    def _counted(self, limit: str) -> Iterator[None]:
        """Count a wait for the statistics."""
        counters, began = self._owner.counters[limit], self._owner.now()
        counters.delayed += 1
        self.delayed += 1
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1
            counters.seconds += self._owner.now() - began

    async def _wait(self, limit: str, seconds: float) -> None:
        with self._counted(limit):
            await asyncio.sleep(seconds)

    @asynccontextmanager
    async def download(self) -> AsyncIterator[None]:
        """Wait for a free download of the client, and occupy it while the context is open.

        First come, first served. Raises ``RateLimited``.
        """
        await self._begin_download()
        try:
            yield
        finally:
            self.downloads.end()

    async def _begin_download(self) -> None:
        if self.downloads.begin():
            return
        if self.downloads.waiting >= MAX_WAITING:
            raise self._refusal("downloads", MAX_WAIT)
        try:
            with self._counted("downloads"):
                async with asyncio.timeout(MAX_WAIT):
                    await self.downloads.wait()
        except TimeoutError:
            raise self._refusal("downloads", MAX_WAIT) from None

    def _refusal(self, limit: str, wait: float) -> RateLimited:
        self.refused += 1
        self._owner.refused(self, limit)
        return RateLimited(f"too many {limit} for access.limits; retry later", retry_after=wait)


class _Downloads:
    """The downloads of one client: those in progress, and those that wait, in order."""

    __slots__ = ("_limit", "_waiting", "active")

    def __init__(self) -> None:
        self._limit: int | None = None
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.active = 0

    @property
    def waiting(self) -> int:
        """The number of waiting downloads."""
        return len(self._waiting)

    def use(self, limit: int | None) -> None:
        """Allow ``limit`` from now on; None: any number."""
        self._limit = limit
        self._begin_waiting()

    def begin(self) -> bool:
        """Begin a download if none waits and one is free; return True if it has begun."""
        if self._waiting or not self._has_room():
            return False
        self.active += 1
        return True

    async def wait(self) -> None:
        """Wait until a download may begin, and begin it."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(place)
        try:
            await place
        except asyncio.CancelledError:
            if place.done() and not place.cancelled():  # it began at the same moment
                self.end()
            elif place in self._waiting:  # not if it was passed over in the same moment
                self._waiting.remove(place)
            raise

    def end(self) -> None:
        """End a download."""
        self.active -= 1
        self._begin_waiting()

    def _has_room(self) -> bool:
        return self._limit is None or self.active < self._limit

    def _begin_waiting(self) -> None:
        while self._waiting and self._has_room():
            place = self._waiting.popleft()
            if not place.done():
                self.active += 1
                place.set_result(None)


class ClientLimits:
    """The clients by name."""

    def __init__(
        self,
        access: Access,
        counters: Mapping[str, LimitCounters],
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.counters = counters
        self.now = now
        self._clients: dict[str, Client] = {}  # the one seen last is the last
        self._logged = -LOG_SECONDS
        self._unlogged = 0
        self.use(access)

    def use(self, access: Access) -> None:
        """Use these limits from now on, also for requests in progress."""
        self.limits = access.limits
        self._is_used = access.is_configured or access.limits != Limits()
        for client in self._clients.values():
            client.use(self.limits)

    def client(self, principal: Principal) -> Client | None:
        """Return the client that limits may delay; None without limits, and on the admin socket."""
        return self.counted(principal) if self._is_used else None

    def counted(self, principal: Principal) -> Client | None:
        """Return the client for the statistics; None on the admin socket."""
        name = _name(principal)
        return None if name is None else self._of(name)

    def _of(self, name: str) -> Client:
        client = self._clients.pop(name, None) or Client(name, self)
        self._clients[name] = client
        client.seen = self.now()
        self._forget()
        return client

    def __len__(self) -> int:
        return len(self._clients)

    def top(self, count: int) -> list[dict[str, Any]]:
        """Return the clients with the most requests and those with the most bytes, as JSON."""
        clients, now = self._clients.values(), self.now()
        by_requests = sorted(clients, key=lambda client: client.requests, reverse=True)[:count]
        by_bytes = sorted(clients, key=lambda client: client.sent, reverse=True)[:count]
        return [
            {
                "client": client.name,
                "requests": client.requests,
                "bytes": client.sent,
                "downloads": client.downloads.active,
                "waiting": client.waiting,
                "delayed": client.delayed,
                "refused": client.refused,
                "seen_seconds_ago": round(now - client.seen, 3),
            }
            for client in dict.fromkeys((*by_requests, *by_bytes))
        ]

    def drain(self) -> dict[str, list[int]]:
        """Return each client's requests and bytes since the last call, and reset the counts."""
        found = {
            name: [client.requests, client.sent]
            for name, client in self._clients.items()
            if client.requests or client.sent
        }
        for name in found:
            self._clients[name].requests = self._clients[name].sent = 0
        return found

    def add(self, counts: Mapping[str, list[int]]) -> None:
        """Add what ``drain`` returned in another process."""
        for name, (requests, sent) in counts.items():
            client = self._of(name)
            client.requests += requests
            client.sent += sent

    def refused(self, client: Client, limit: str) -> None:
        """Count a refusal, and log it unless one was logged just now."""
        self.counters[limit].refused += 1
        now = self.now()
        if now - self._logged < LOG_SECONDS:
            self._unlogged += 1
            return
        log.warning("client limited", client=client.name, limit=limit, unlogged=self._unlogged)
        self._logged, self._unlogged = now, 0

    def _forget(self) -> None:
        """Drop the idle clients that were seen longest ago."""
        while len(self._clients) > KEPT:
            oldest = next(iter(self._clients.values()))
            if len(self._clients) <= MAX_CLIENTS and not oldest.is_idle(self.now()):
                return
            del self._clients[oldest.name]


def _bucket(
    bucket: TokenBucket | None, rate: float | None, burst: float | None, now: float
) -> TokenBucket | None:
    """Return the bucket with another rate, a new one, or None without a rate."""
    if rate is None or burst is None:
        return None
    if bucket is None:
        return TokenBucket(rate, burst, now)
    bucket.change(rate, burst, now)
    return bucket


def _name(principal: Principal) -> str | None:
    """Return what identifies a client, as the statistics show it."""
    if principal.user is not None:
        return f"user:{principal.user}"
    return None if principal.address is None else network_of(principal.address)
