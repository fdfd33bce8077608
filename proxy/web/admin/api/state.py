"""The client's identity, and the statistics of ``/-/stats`` as a whole and in parts."""

from dataclasses import dataclass
from typing import Any

from pydantic import ConfigDict

from proxy import VERSION
from proxy.access.operator import AdminAccess
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, NoParams, Route
from proxy.web.admin.statistics import Statistics, public


class Session(Model):
    """The client; ``how_to_log_in`` lists ``token`` and ``password`` if they are configured."""

    who: str | None
    may_administer: bool
    version: str
    how_to_log_in: list[str]


class RateLimit(Model):
    """The pulls that an upstream allows; ``source`` is for operators."""

    limit: int | None
    remaining: int | None
    window_seconds: float
    refills_at: float | None
    source: str | None = None


class Credentials(Model):
    """The credentials for an upstream."""

    kind: str
    expires_in_seconds: int | None


class Counters(Model):
    """Totals since the start: see ``docs/operating.md``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    requests: int
    hits: int
    errors: dict[str, int]
    bytes_to_clients: int
    bytes_from_upstream: int
    bytes_saved: int
    pulls_spent: int


class Upstream(Counters):
    """The totals and the state of an upstream."""

    up: bool
    offline: bool
    offline_mode: str
    circuit: str
    last_success: float | None
    rate_limit: RateLimit | None
    credentials: Credentials


class NamedUpstream(Upstream):
    """An upstream with its name."""

    name: str


class CacheNumbers(Model):
    """The content of the cache, and its totals since the start."""

    model_config = ConfigDict(frozen=True, extra="allow")

    bytes: int
    limit_bytes: int
    pinned_bytes: int
    quarantined_bytes: int
    files: int
    oldest_use: float | None


class Download(Model):
    """A download in progress; digest and repository are for operators."""

    upstream: str
    bytes: int
    size: int | None
    readers: int
    digest: str | None = None
    repository: str | None = None


class Client(Model):
    """One of the clients with the most requests or bytes."""

    client: str
    requests: int
    bytes: int
    downloads: int
    waiting: int
    delayed: int
    refused: int
    seen_seconds_ago: float


class Stats(Model):
    """The document of ``/-/stats``."""

    version: str
    uptime_seconds: float
    total: Counters
    upstreams: dict[str, Upstream]
    cache: CacheNumbers
    downloads: list[Download]
    clients: list[Client]


class Upstreams(Model):
    """The configured upstreams."""

    upstreams: list[NamedUpstream]


class Clients(Model):
    """The clients with the most requests or bytes."""

    clients: list[Client]


@dataclass(frozen=True, slots=True)
class State:
    """The statistics and their parts."""

    statistics: Statistics
    access: AdminAccess

    @property
    def routes(self) -> list[AnyRoute]:
        """The routes of this group."""
        return [
            Route(
                "GET",
                "session",
                NoParams,
                Session,
                self._session,
                "Show the client's user and permissions.",
                is_public=True,
            ),
            Route(
                "GET", "stats", NoParams, Stats, self._stats, "Show the statistics.", is_public=True
            ),
            Route(
                "GET",
                "upstreams",
                NoParams,
                Upstreams,
                self._upstreams,
                "List the upstreams.",
                is_public=True,
            ),
            Route("GET", "clients", NoParams, Clients, self._clients, "List the busiest clients."),
        ]

    async def _session(self, _: NoParams, caller: Caller) -> Model:
        principal = caller.principal
        who = None
        if principal is not None:
            who = principal.user or ("operator" if principal.is_operator else principal.address)
        return Session(
            who=who,
            may_administer=caller.may_administer,
            version=VERSION,
            how_to_log_in=self.access.logins,
        )

    async def _stats(self, _: NoParams, caller: Caller) -> Model:
        return Stats.model_validate(await self._shown(caller))

    async def _upstreams(self, _: NoParams, caller: Caller) -> Model:
        shown = (await self._shown(caller))["upstreams"]
        rows = [{"name": name} | numbers for name, numbers in shown.items()]
        return Upstreams.model_validate({"upstreams": rows})

    async def _clients(self, _: NoParams, caller: Caller) -> Model:
        return Clients.model_validate({"clients": (await self._shown(caller))["clients"]})

    async def _shown(self, caller: Caller) -> dict[str, Any]:
        stats = await self.statistics.complete()
        return stats if caller.may_administer else public(stats)
