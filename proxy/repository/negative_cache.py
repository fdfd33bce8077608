"""What upstream says does not exist: believed for a while, so that asking again costs nothing.

Only true absence is learnt. A denial, a rate limit or a failure is none.
"""

from collections.abc import Mapping

from proxy.core.errors import NotFound
from proxy.core.names import Target
from proxy.repository.origins import Origin
from proxy.runtime.ttl_cache import TTLCache


class NegativeCache:
    """The absences of one kind of content; ``unknown`` is the error that tells of one."""

    def __init__(self, sources: Mapping[str, Origin], unknown: type[NotFound]) -> None:
        self._sources = sources
        self._unknown = unknown
        self._known: TTLCache[str] = TTLCache()

    async def refuse(self, target: Target, ref: str) -> None:
        """Raise ``unknown`` for what is known to be absent."""
        message = await self._known.get(self._key(target, ref))
        if message is not None:
            error = self._unknown(message)
            error.is_remembered = True
            raise error

    async def forget(self, target: Target, ref: str) -> None:
        """Believe it no longer: somebody wants to know afresh."""
        await self._known.forget(self._key(target, ref))

    async def learn(self, target: Target, ref: str, error: NotFound) -> None:
        """Believe what upstream said, for ``negative_ttl``."""
        ttl = self._sources[target.upstream].rule.negative_ttl
        await self._known.learn(self._key(target, ref), error.message, ttl)

    def _key(self, target: Target, ref: str) -> str:
        """Return a key that holds for the present configuration of the upstream only."""
        return f"{self._sources[target.upstream].version} {target} {ref}"
