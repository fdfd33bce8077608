"""Builds the configured upstreams, and rebuilds those whose settings change."""

import asyncio
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import structlog
from yarl import URL

from proxy.app import tag_rules
from proxy.core.policy import Rule
from proxy.core.records import Clock
from proxy.repository.origins import CallerTimes, Origin, SharedSources
from proxy.runtime.events import NULL_EMITTER, Emitter, EventKind
from proxy.runtime.metrics import Metrics
from proxy.settings import FreshnessOverride, Settings, UpstreamTLS
from proxy.settings import Upstream as UpstreamSettings
from proxy.storage.fallback import FallbackDirectory
from proxy.upstream.auth import Authorizer, TokenVault
from proxy.upstream.bandwidth import Bandwidth
from proxy.upstream.body import DownloadPolicy
from proxy.upstream.budget import Budget, NoBudget
from proxy.upstream.caller_auth import CallerAuthorizer
from proxy.upstream.circuit_breaker import CircuitBreaker
from proxy.upstream.client import Client
from proxy.upstream.credentials.choosing import check_credentials, make_credentials
from proxy.upstream.guard import Guard, Network
from proxy.upstream.offline import OfflineMode
from proxy.upstream.ranges import SplitPolicy
from proxy.upstream.registry import Upstream
from proxy.upstream.transport import Transport, client_context

CHECK_SECONDS: Final = 5.0
IDLE_SECONDS: Final = 60.0
"""Time without an open response after which a replaced upstream is closed. A download that resumes
has none for at most ``answer`` and ``MAX_RESUME_PAUSE`` seconds."""

_APART: Final = {
    "offline": None,
    "aliases": (),
    "hostnames": (),
    "library_prefix": False,
    "min_age": 0.0,
    "min_age_except": (),
    "first_seen": None,
    "as_of": None,
    "tag_rules": (),
}
"""Settings of an upstream that do not affect its connections."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Built:
    """One upstream with its connections; equal settings and files have equal keys."""

    key: object
    upstream: Upstream
    transport: Transport
    authorizer: Authorizer
    version: int
    since: float
    url: str
    busy_at: float = 0.0

    async def close(self) -> None:
        await self.authorizer.close()
        await self.transport.close()


class UpstreamExtras(NamedTuple):
    """The parts that all upstreams share: other sources of content, tokens, and listeners."""

    shared_sources: SharedSources = SharedSources()
    tokens: TokenVault | None = None
    events: Emitter = NULL_EMITTER


class Plan(NamedTuple):
    """Upstreams that are built, but not in use until ``Upstreams.commit``."""

    built: dict[str, _Built]
    sources: dict[str, Origin]
    offline: dict[str, OfflineMode]


class Upstreams:
    """Owns the connections to all upstreams, until ``close``."""

    def __init__(
        self,
        metrics: Metrics,
        clock: Clock,
        downloads: int,
        network: Network,
        extras: UpstreamExtras = UpstreamExtras(),  # noqa: B008 - it is immutable
    ) -> None:
        """Build nothing yet; ``downloads`` caps ``max_downloads`` by the descriptors available."""
        self._shared_sources, self._tokens, self._events = extras
        self.on_limits: Final[list[Callable[[str], None]]] = []
        """Called with the name of an upstream when the limits of its requests have changed."""
        self._metrics = metrics
        self._clock = clock
        self._downloads = downloads
        self._network = network
        self._version = 0
        self._fallbacks: tuple[FallbackDirectory, ...] = ()
        self._built: dict[str, _Built] = {}
        self._retired: list[_Built] = []
        self.current: Final[dict[str, Upstream]] = {}
        """The upstreams in use; the mapping itself never changes."""

    async def prepare(self, settings: Settings) -> Plan:
        """Build upstreams whose settings changed, and reuse the others. Raises ``ConfigError``."""
        shared: ssl.SSLContext | None = None
        built: dict[str, _Built] = {}
        try:
            for name, configured in settings.upstreams.items():
                known = self._built.get(name)
                key = _key(settings, configured)
                if known is not None and known.key == key:
                    built[name] = known
                    continue
                if configured.tls != UpstreamTLS():
                    context = client_context(name, configured.tls)
                else:  # loading the system's CA certificates takes tens of milliseconds
                    context = shared = shared or client_context("", UpstreamTLS())
                check_credentials(name, configured)
                built[name] = self._build(name, settings, context)
        except BaseException:
            await self.discard(Plan(built, {}, {}))
            raise
        known_paths = {fallback.path: fallback for fallback in self._fallbacks}
        fallbacks = tuple(known_paths.get(p) or FallbackDirectory(p) for p in settings.fallback)
        self._fallbacks = fallbacks
        sources = {
            name: Origin(
                entry.upstream,
                freshness_rule(settings, name),
                entry.version,
                entry.since,
                entry.url,
                fallbacks,
                _caller_times(settings.upstreams[name]),
                self._shared_sources,
                tag_rules.build_tag_rules(name, settings.upstreams[name]),
            )
            for name, entry in built.items()
        }
        modes = {name: OfflineMode(settings.offline_mode(name)) for name in built}
        return Plan(built, sources, modes)

    async def discard(self, plan: Plan) -> None:
        """Close the upstreams of a plan that is not committed."""
        for name, entry in plan.built.items():
            if self._built.get(name) is not entry:
                await entry.close()

    def commit(self, plan: Plan) -> Mapping[str, Origin]:
        """Use these from now on and return them; replaced ones finish their work, then close."""
        now = time.monotonic()
        for name, entry in self._built.items():
            if plan.built.get(name) is not entry:
                entry.busy_at = now
                self._retired.append(entry)
        for name, entry in plan.built.items():
            if (before := self._built.get(name)) is not None:
                entry.upstream.offline.live = before.upstream.offline.live
            entry.upstream.offline.configured = plan.offline[name]
        self._built = plan.built
        self.current.clear()
        self.current.update({name: entry.upstream for name, entry in plan.built.items()})
        return plan.sources

    async def close_retired(self) -> None:
        """Close replaced upstreams once they are idle, until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            now = time.monotonic()
            for entry in list(self._retired):
                if not entry.transport.is_idle:
                    entry.busy_at = now
                elif now - entry.busy_at >= IDLE_SECONDS:
                    self._retired.remove(entry)
                    await entry.close()
                    log.debug("replaced upstream closed", upstream=entry.transport.name)

    async def close(self) -> None:
        """Close all connections."""
        for entry in (*self._built.values(), *self._retired):
            await entry.close()

    def _build(self, name: str, settings: Settings, context: ssl.SSLContext) -> _Built:
        configured, patience = settings.upstreams[name], settings.patience
        guard = Guard(
            URL(configured.url),
            configured.auth_hosts,
            private=configured.private,
            network=self._network,
        )
        counters = self._metrics.add(name)
        transport = Transport(name, guard, context, settings.timeouts, counters)
        credentials = make_credentials(configured, transport)
        asks_as_caller = configured.asks_as_caller
        made = CallerAuthorizer if asks_as_caller else Authorizer
        tokens = None if asks_as_caller else self._tokens
        authorizer = made(transport, credentials, configured.auth_hosts, tokens)

        changed = partial(self._limits_changed, name)
        breaker = CircuitBreaker(name, patience, time.monotonic, changed, self._events)
        client = Client(transport, authorizer, breaker, settings.timeouts.answer)
        parallel = settings.parallel
        pieces = SplitPolicy(parallel.connections, int(parallel.min_blob_size))
        limit = configured.max_bandwidth
        bandwidth = Bandwidth(limit) if limit else None
        upstream = Upstream(
            client,
            NoBudget(self._clock)
            if asks_as_caller
            else Budget(self._clock, changed, partial(self._budget_is_low, name)),
            policy=DownloadPolicy(patience.resumes, pieces, bandwidth),
            downloads=min(configured.max_downloads, self._downloads),
            is_public=configured.is_anonymous,
        )
        self._version += 1
        key, now = _key(settings, configured), time.monotonic()
        return _Built(key, upstream, transport, authorizer, self._version, now, configured.url)

    def _limits_changed(self, name: str) -> None:
        for listener in self.on_limits:
            listener(name)

    def _budget_is_low(self, name: str, budget: Budget) -> None:
        self._events.emit(
            EventKind.BUDGET_LOW,
            name,
            limit=budget.limit,
            remaining=budget.remaining,
            refills_at=budget.refills_at,
        )


def _key(settings: Settings, configured: UpstreamSettings) -> object:
    """Return the inputs of an upstream's connections: settings, and the stamps of its files."""
    own = configured.model_copy(update=_APART | {"freshness": FreshnessOverride()})
    tls = configured.tls
    files = [_stamp(file) for file in (tls.ca_file, tls.cert_file, tls.key_file)]
    files.append(_stamp(configured.password_file))
    return own, settings.timeouts, settings.patience, settings.parallel, files


def _stamp(file: Path | None) -> tuple[int, ...] | None:
    """Return a value that changes with the file, None if there is no file."""
    try:
        status = None if file is None else file.stat()
    except OSError:
        return None
    return None if status is None else (status.st_mtime_ns, status.st_ino, status.st_size)


def _caller_times(configured: UpstreamSettings) -> CallerTimes | None:
    if not configured.asks_as_caller:
        return None
    return CallerTimes(configured.caller_ttl, configured.caller_stale)


def freshness_rule(settings: Settings, name: str) -> Rule:
    """Return how old the answers of an upstream may be."""
    fresh = settings.freshness_of(name).model_dump()
    keep_deleted = fresh.pop("deleted_tags")
    return Rule(keep_deleted=keep_deleted, **fresh)
