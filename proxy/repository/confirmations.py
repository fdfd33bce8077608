"""Which clients may read which repository, for upstreams with ``credentials: caller``.

Content is stored once, whichever client fetched it. A client gets it only after upstream has
confirmed that client for the repository: by a HEAD of the requested content, with a new token if
there are tokens. If upstream has no such object, a list of tags distinguishes a missing object from
a hidden repository. 401 and 403 mean no. All other failures mean unknown, which is never a yes:
only clients with an earlier confirmation are served then, for a limited time.

This module ignores the content of the cache. A refused client causes the same requests, and gets
the same answer, whether the content is held or not.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

from cachetools import LRUCache

from proxy.core.errors import (
    Denied,
    NotFound,
    UpstreamFailure,
    UpstreamRejected,
    UpstreamTimeout,
)
from proxy.core.names import Digest, Kind, Route, Target
from proxy.core.records import Clock
from proxy.repository.origins import Origin
from proxy.runtime.metrics import UpstreamCounters
from proxy.runtime.singleflight import SingleFlight
from proxy.upstream.credentials.caller import ANONYMOUS, Caller
from proxy.upstream.registry import Upstream

MAX_VERDICTS: Final = 100_000
REFUSED_SECONDS: Final = 15.0
"""Seconds for which a refusal is cached: access may be granted meanwhile."""

RETRY_SECONDS: Final = 10.0
"""Seconds without a request about a confirmed client after upstream has failed."""


class _Key(NamedTuple):
    version: int
    target: Target
    caller: str


@dataclass(slots=True)
class _Verdict:
    """Upstream's answer about a client, and when it was asked (Unix seconds).

    ``failed_at``: when upstream last failed to repeat it.
    """

    asked_at: float
    refusal: str | None = None
    failed_at: float | None = None

    def confirms(self, now: float, seconds: float) -> bool:
        """Return True for a confirmation of the last ``seconds``; a clock set back ends it."""
        return self.refusal is None and _is_within(self.asked_at, now, seconds)


class Confirmations:
    """The verdicts of upstreams about clients, only in memory; at the limit the oldest is dropped.

    A confirmed client waits at most ``patience`` seconds for the next confirmation.
    """

    def __init__(
        self,
        sources: Mapping[str, Origin],
        counters: Callable[[str], UpstreamCounters],
        clock: Clock,
        patience: float,
    ) -> None:
        self._sources = sources
        self._counters = counters
        self._clock = clock
        self._patience = patience
        self._verdicts: LRUCache[_Key, _Verdict] = LRUCache(MAX_VERDICTS)
        self._flights: SingleFlight[None] = SingleFlight("confirm a client")

    async def close(self) -> None:
        """Cancel running requests."""
        await self._flights.close()

    def is_needed(self, upstream: str) -> bool:
        """Return True if the upstream has ``credentials: caller``."""
        origin = self._sources.get(upstream)
        return origin is not None and origin.callers is not None

    def is_confirmed(self, caller: Caller, target: Target) -> bool:
        """Return True if a client may be answered from the cache now, without asking."""
        origin = self._sources.get(target.upstream)
        if origin is None or origin.callers is None:
            return origin is not None
        return self._confirmation(origin, caller, target, origin.callers.ttl) is not None

    async def confirm(self, caller: Caller, target: Target, route: Route) -> None:
        """Return if a client may read a repository; its login must be the current one.

        Raises ``Denied`` or ``NotFound`` for no, ``UpstreamFailure`` if unknown.
        """
        origin = self._sources[target.upstream]
        if origin.callers is None or self.is_confirmed(caller, target):
            return
        former, now = (
            self._confirmation(origin, caller, target, origin.callers.stale),
            self._clock(),
        )
        if origin.rule.offline:
            if former is None:
                raise Denied(f"{target.upstream} cannot confirm your access, because it is offline")
            self._count(target, "stale")
            return
        if former is None:
            await self._ask(origin, caller, target, route)
            return
        if former.failed_at is None or not _is_within(former.failed_at, now, RETRY_SECONDS):
            try:
                async with asyncio.timeout(self._patience):
                    await self._ask(origin, caller, target, route)
            except (UpstreamFailure, TimeoutError):
                former.failed_at = self._clock()
            else:
                return
        self._count(target, "stale")

    def refuse(self, caller: Caller, target: Target) -> None:
        """Drop a confirmation: upstream has refused the client since."""
        self._verdicts.pop(_key(self._sources[target.upstream], target, caller), None)

    async def log_in(self, upstream: str) -> None:
        """Return if upstream accepts the current client's login.

        Raises ``Denied`` or ``UpstreamFailure``.
        """
        try:
            await self._sources[upstream].upstream.log_in()
        except TimeoutError:
            raise UpstreamTimeout(f"{upstream} does not answer in time") from None

    def _confirmation(
        self, origin: Origin, caller: Caller, target: Target, seconds: float
    ) -> _Verdict | None:
        """Return the confirmation of a client, or that of anonymous clients for a public one."""
        now = self._clock()
        for one in (caller, ANONYMOUS):
            verdict = self._verdicts.get(_key(origin, target, one))
            if verdict is not None and verdict.confirms(now, seconds):
                return verdict
        return None

    async def _ask(self, origin: Origin, caller: Caller, target: Target, route: Route) -> None:
        """Ask once for all requests of a client to a repository.

        A request that waited for another one does not get its 404, which may be for one object.
        """
        key = _key(origin, target, caller)
        while True:
            is_first = not self._flights.is_running(key)
            try:
                return await self._flights.do(key, lambda: self._decide(origin, key, route))
            except NotFound:
                if is_first:
                    raise

    async def _decide(self, origin: Origin, key: _Key, route: Route) -> None:
        """Ask upstream, and store the verdict."""
        asked_at = self._clock()
        known = self._verdicts.get(key)
        if (
            known is not None
            and known.refusal
            and _is_within(known.asked_at, asked_at, REFUSED_SECONDS)
        ):
            raise Denied(known.refusal)
        try:
            await _look(origin.upstream, key.target, route)
        except Denied as error:
            self._verdicts[key] = _Verdict(asked_at, refusal=error.message)
            self._count(key.target, "refused")
            raise
        except NotFound:
            self._verdicts.pop(key, None)
            self._count(key.target, "refused")
            raise
        except UpstreamFailure:
            self._count(key.target, "failed")
            raise
        self._verdicts[key] = _Verdict(asked_at)
        self._count(key.target, "confirmed")

    def _count(self, target: Target, outcome: str) -> None:
        self._counters(target.upstream).confirmations[outcome] += 1


async def _look(upstream: Upstream, target: Target, route: Route) -> None:
    """Return if upstream shows the client a repository. Raises ``RegistryError``.

    The answer about the object counts if upstream lists no tags for this client.
    """
    await upstream.forget_token(target.repo)
    absence: NotFound | None = None
    try:
        if route.kind is Kind.BLOB:
            await upstream.blob_size(target, Digest(route.ref))
            return
        if route.kind is not Kind.TAGS and await upstream.head_manifest(target.repo, route.ref):
            return
    except NotFound as error:
        absence = error
    try:
        await upstream.tags(target.repo, {"n": "1"})
    except (Denied, UpstreamRejected):
        if absence is None:
            raise
        raise absence from None


def _key(origin: Origin, target: Target, caller: Caller) -> _Key:
    return _Key(origin.version, target, caller.key)


def _is_within(moment: float, now: float, seconds: float) -> bool:
    return moment <= now < moment + seconds
