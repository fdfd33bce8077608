"""Live statistics as a stream. Each tick is encoded once, and sent to all watchers."""

import asyncio
import time
from dataclasses import dataclass, field
from typing import Final

from aiohttp.web import StreamResponse

from proxy.runtime.metrics import Outcome, UpstreamCounters
from proxy.runtime.pulse import Pulse
from proxy.upstream.registry import Upstream
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, NoParams, Route
from proxy.web.admin.api.state import Download
from proxy.web.admin.api.streams import Streams, event
from proxy.web.admin.statistics import Statistics

TICK_SECONDS: Final = 2.0


class LiveLimit(Model):
    """The pulls that an upstream allows."""

    limit: int | None
    remaining: int | None
    refills_at: float | None


class LiveUpstream(Model):
    """An upstream; ``latency_ms`` is the mean of its last answers, ``errors`` since the start."""

    up: bool
    offline: bool
    circuit: str
    latency_ms: float | None
    errors: int
    rate_limit: LiveLimit | None


class LiveCache(Model):
    """The content of the cache."""

    bytes: int
    limit_bytes: int
    pinned_bytes: int
    files: int
    oldest_use: float | None


class LiveStats(Model):
    """The totals since the start, and the current state."""

    time: float
    uptime_seconds: float
    requests: int
    hits: int
    errors: int
    client_bytes: int
    upstream_bytes: int
    cache: LiveCache
    upstreams: dict[str, LiveUpstream]
    downloads: list[Download]


@dataclass(slots=True)
class _Latency:
    """The mean time to the headers of an upstream's last answers, in milliseconds."""

    count: int = 0
    seconds: float = 0.0
    mean: float | None = None

    def update(self, counters: UpstreamCounters) -> float | None:
        """Return the mean of the answers since the last call; without any, the previous mean."""
        answered = [each for name, each in counters.responses.items() if name != "none"]
        count = sum(sum(each.counts) for each in answered)
        seconds = sum(each.total for each in answered)
        if count > self.count:
            self.mean = round((seconds - self.seconds) / (count - self.count) * 1000, 1)
        self.count, self.seconds = count, seconds
        return self.mean


@dataclass(slots=True)
class Live:
    """The stream. ``run`` sends ticks while there are watchers."""

    statistics: Statistics
    streams: Streams
    seconds: float = TICK_SECONDS
    _watchers: int = 0
    _watched: asyncio.Event = field(default_factory=asyncio.Event)
    _tick: Pulse = field(default_factory=Pulse)
    _frames: dict[bool, bytes] = field(default_factory=dict)
    _latencies: dict[str, _Latency] = field(default_factory=dict)

    @property
    def routes(self) -> list[AnyRoute]:
        """The routes of this group."""
        text = "Follow the statistics: an event stats every two seconds."
        return [
            Route("GET", "live", NoParams, None, self._live, text, is_public=True, events=LiveStats)
        ]

    async def run(self) -> None:
        """Send a tick every two seconds while there are watchers."""
        while True:
            await self._watched.wait()
            await self._make()
            self._tick.beat()
            await asyncio.sleep(self.seconds)

    async def _live(self, _: NoParams, caller: Caller) -> StreamResponse:
        async with self.streams.opened(caller) as stream:
            self._watchers += 1
            self._watched.set()
            try:
                while not stream.has_ended:
                    if frame := self._frames.get(caller.may_administer):
                        await stream.send(frame)
                    await stream.wait(self._tick.wait())
            finally:
                self._watchers -= 1
                if not self._watchers:
                    self._watched.clear()
                    self._frames.clear()
        return stream.response

    async def _make(self) -> None:
        """Encode a tick, once for operators and once without names for other clients."""
        oldest_use = await self.statistics.content.evictor.oldest_use()
        complete = self._stats(oldest_use)
        unnamed = [
            Download(upstream=one.upstream, bytes=one.bytes, size=one.size, readers=one.readers)
            for one in complete.downloads
        ]
        public = complete.model_copy(update={"downloads": unnamed})
        for may_administer, stats in ((True, complete), (False, public)):
            data = stats.model_dump_json().encode()
            self._frames[may_administer] = event("stats", data)

    def _stats(self, oldest_use: float | None) -> LiveStats:
        known, total = self.statistics, self.statistics.metrics.total()
        usage = known.content.usage()
        return LiveStats(
            time=time.time(),
            uptime_seconds=known.uptime,
            requests=total.outcomes.total(),
            hits=total.spared,
            errors=total.outcomes[Outcome.ERROR],
            client_bytes=total.bytes_to_clients,
            upstream_bytes=total.bytes_from_upstream,
            cache=LiveCache(
                bytes=usage.used_bytes,
                limit_bytes=usage.limit_bytes,
                pinned_bytes=known.pins.bytes,
                files=usage.files,
                oldest_use=oldest_use,
            ),
            upstreams={name: self._upstream(name, each) for name, each in known.upstreams.items()},
            downloads=[Download.model_validate(each) for each in known.in_progress()],
        )

    def _upstream(self, name: str, upstream: Upstream) -> LiveUpstream:
        breaker, budget = upstream.circuit_breaker, upstream.budget
        latency = self._latencies.setdefault(name, _Latency())
        counters = self.statistics.metrics.of(name)
        limit = LiveLimit(
            limit=budget.limit, remaining=budget.remaining, refills_at=budget.refills_at
        )
        return LiveUpstream(
            up=breaker.is_up,
            offline=upstream.is_offline,
            circuit=breaker.state.name.lower(),
            latency_ms=latency.update(counters),
            errors=counters.outcomes[Outcome.ERROR],
            rate_limit=None if budget.share is None else limit,
        )
