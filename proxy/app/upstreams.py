"""Builds the configured upstreams."""

import ssl
import time
from contextlib import AsyncExitStack

from yarl import URL

from proxy import VERSION
from proxy.cache.sources import Source
from proxy.metrics import Metrics
from proxy.policy import Rule
from proxy.records import Clock
from proxy.settings import Settings, UpstreamTLS
from proxy.settings import Upstream as UpstreamSettings
from proxy.upstream.auth import Authorizer
from proxy.upstream.budget import Budget
from proxy.upstream.client import Client
from proxy.upstream.download import Terms
from proxy.upstream.guard import Guard, Network
from proxy.upstream.patience import Limits, Patience
from proxy.upstream.providers import Anonymous, Credentials, PasswordFile, Provider, Static
from proxy.upstream.registry import Upstream
from proxy.upstream.spans import Pieces
from proxy.upstream.transport import Transport, Trust, client_context


class Upstreams:
    """Builds the configured upstreams, whose connections ``stack`` closes."""

    def __init__(
        self,
        stack: AsyncExitStack,
        settings: Settings,
        metrics: Metrics,
        clock: Clock,
        downloads: int,
        network: Network,
    ) -> None:
        """Prepare; ``downloads`` bounds ``max_downloads`` where descriptors are few."""
        self._stack = stack
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        self._downloads = downloads
        self._network = network

    def build(self) -> dict[str, Source]:
        """Return every upstream with its rule. Raises ``ConfigError``."""
        usual = UpstreamTLS()
        shared = client_context("", usual)  # reading the system's authorities takes tens of ms
        sources = {}
        for name, upstream in self._settings.upstreams.items():
            context = shared if upstream.tls == usual else client_context(name, upstream.tls)
            sources[name] = Source(self._upstream(name, context), self._rule(name))
        return sources

    def _upstream(self, name: str, context: ssl.SSLContext) -> Upstream:
        configured, patience = self._settings.upstreams[name], self._settings.patience
        url = URL(configured.url)
        guard = Guard(url, configured.auth_hosts, private=configured.private, network=self._network)
        transport = Transport(
            name,
            trust=Trust(context, guard),
            timeouts=self._settings.timeouts,
            counters=self._metrics.of(name),
            user_agent=f"millpond/{VERSION}",
        )
        self._stack.push_async_callback(transport.close)
        provider, hosts = _provider(configured), configured.auth_hosts
        authorizer = Authorizer(url, provider, hosts, transport.fetch_token)
        self._stack.push_async_callback(authorizer.close)
        limits = Limits(patience.retries, patience.failures, patience.pause, patience.cool_down)
        client = Client(
            url,
            transport,
            authorizer=authorizer,
            patience=Patience(name, limits, time.monotonic),
            answer=self._settings.timeouts.answer,
        )
        budget = Budget(self._clock)
        downloads = min(configured.max_downloads, self._downloads)
        parallel = self._settings.parallel
        pieces = Pieces(parallel.connections, int(parallel.start_from))
        terms = Terms(patience.resumes, pieces)
        is_anonymous = configured.username is None and configured.tls.cert_file is None
        return Upstream(client, budget, terms=terms, downloads=downloads, is_anonymous=is_anonymous)

    def _rule(self, name: str) -> Rule:
        fresh = self._settings.freshness_of(name).model_dump()
        keep_deleted = fresh.pop("deleted_tags")
        return Rule(keep_deleted=keep_deleted, offline=self._settings.offline, **fresh)


def _provider(configured: UpstreamSettings) -> Provider:
    if configured.username is None:
        return Anonymous()
    if configured.password_file is not None:
        return PasswordFile(configured.username, configured.password_file)
    assert configured.password is not None
    return Static(Credentials(configured.username, configured.password.get_secret_value()))
