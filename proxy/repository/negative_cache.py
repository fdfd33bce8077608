"""Absences according to upstream, for ``negative_ttl``; failures are never cached."""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from proxy.core.errors import NotFound
from proxy.core.names import Repo, Target
from proxy.core.records import Clock
from proxy.index.expiring import ExpiringRows, Key
from proxy.repository.origins import Origin
from proxy.runtime.ttl_cache import TTLCache

MIN_SAVED_SECONDS: Final = 60.0
"""An absence that expires earlier is not saved: a restart takes about as long."""

MAX_SAVED: Final = 2000


class _Absence(NamedTuple):
    """``until`` is Unix seconds; ``version`` is that of the upstream's configuration."""

    target: Target
    ref: str
    message: str
    until: float
    version: int


class NegativeCache:
    """The absences of one kind of content; ``unknown`` is the error for one."""

    def __init__(
        self, sources: Mapping[str, Origin], unknown: type[NotFound], clock: Clock
    ) -> None:
        self._sources = sources
        self._unknown = unknown
        self._clock = clock
        self._known: TTLCache[_Absence] = TTLCache()

    async def refuse(self, target: Target, ref: str) -> None:
        """Raise ``unknown`` for a known absence."""
        absence = await self._known.get(self._key(target, ref))
        if absence is not None:
            error = self._unknown(absence.message)
            error.is_cached = True
            raise error

    async def forget(self, target: Target, ref: str) -> None:
        """Drop an absence, so that upstream is asked again."""
        await self._known.delete(self._key(target, ref))

    async def learn(self, target: Target, ref: str, error: NotFound) -> None:
        """Record upstream's answer; nothing offline, because upstream was not asked."""
        rule = self._sources[target.upstream].rule
        if not rule.offline:
            await self._remember(target, ref, error.message, rule.negative_ttl)

    async def save(self, rows: ExpiringRows) -> None:
        """Store the absences for the next start: the newest ``MAX_SAVED`` of anonymous upstreams.

        With other credentials a registry may show what it hides now. A running cache stores none,
        so none outlives the pull that proves it wrong.
        """
        now, saved = self._clock(), []
        for target, ref, message, until, version in await self._known.values():
            source = self._anonymous(target)
            if source and source.version == version and until - now >= MIN_SAVED_SECONDS:
                saved.append((until, source.url, *target, ref, message))
        if newest := sorted(saved)[-MAX_SAVED:]:
            await rows.set(self._row, newest, newest[-1][0] - now)

    async def load(self, rows: ExpiringRows) -> None:
        """Restore the saved absences that the current settings permit."""
        now = self._clock()
        saved = await rows.get(self._row, _parse) or ()
        await rows.delete(self._row)
        for until, url, target, ref, message in saved:
            source = self._anonymous(target)
            if source and source.url == url:
                # The clock may have been set back since, or negative_ttl made shorter.
                ttl = min(until - now, source.rule.negative_ttl)
                await self._remember(target, ref, message, ttl)

    @property
    def _row(self) -> Key:
        return ("absences", self._unknown.__name__)

    def _anonymous(self, target: Target) -> Origin | None:
        """Return the upstream of a repository if it is configured, without credentials."""
        source = self._sources.get(target.upstream)
        return source if source is not None and source.upstream.is_public else None

    async def _remember(self, target: Target, ref: str, message: str, ttl: float) -> None:
        version = self._sources[target.upstream].version
        absence = _Absence(target, ref, message, self._clock() + ttl, version)
        await self._known.set(self._key(target, ref), absence, ttl)

    def _key(self, target: Target, ref: str) -> str:
        """Return a key for the present configuration of the upstream only."""
        return f"{self._sources[target.upstream].version} {target} {ref}"


def _parse(rows: Any) -> list[tuple[float, str, Target, str, str]]:
    """Return saved absences. Raises ``TypeError`` or ``ValueError`` for rows that are none."""
    return [
        (float(until), str(url), Target(str(upstream), Repo(str(repo))), str(ref), str(message))
        for until, url, upstream, repo, ref, message in rows
    ]
