"""Answers for tags lists: upstream's, or the known tags when upstream is away."""

from collections.abc import Mapping

from proxy.cache.answers import TagList
from proxy.cache.sources import Source
from proxy.errors import NameUnknown, UpstreamFailure
from proxy.index import Index
from proxy.metrics import Outcome
from proxy.names import Target

INCOMPLETE_WARNING = "incomplete: upstream failed, these are the tags that have been asked for here"


class Listings:
    """Lists tags."""

    def __init__(self, index: Index, sources: Mapping[str, Source]) -> None:
        self._index = index
        self._sources = sources

    async def page(self, target: Target, n: int | None, last: str | None) -> TagList:
        """Return up to ``n`` tags behind ``last`` (None: all that upstream gives at once).

        Raises ``RegistryError``.
        """
        if self._sources[target.upstream].rule.offline:
            return await self._known(target, n, last)
        query = {} if n is None else {"n": str(n)}
        if last is not None:
            query["last"] = last
        try:
            page = await self._sources[target.upstream].upstream.tags(target.repo, query)
        except UpstreamFailure:
            try:
                return await self._known(target, n, last)
            except NameUnknown:
                pass
            raise
        return TagList(page.tags, page.last, Outcome.THROUGH)

    async def _known(self, target: Target, n: int | None, last: str | None) -> TagList:
        known = await self._index.tags(target)
        if not known:
            raise NameUnknown(f"no tags of {target} are known, and this is offline")
        behind: list[str] = [tag for tag in known if last is None or tag > last]
        page = behind if n is None else behind[:n]
        further = page[-1] if page and len(page) < len(behind) else None
        if self._sources[target.upstream].rule.offline:
            return TagList(page, further, Outcome.HIT)
        return TagList(page, further, Outcome.STALE, INCOMPLETE_WARNING)
