"""Answers for lists: a repository's tags, and the repositories that are known here."""

from collections.abc import Mapping
from typing import Final

from proxy.cache.answers import Listed
from proxy.cache.sources import Source
from proxy.errors import Denied, NameUnknown, UpstreamFailure
from proxy.index import Index
from proxy.metrics import Outcome
from proxy.names import Target
from proxy.upstream.registry import TagPage

INCOMPLETE_WARNING: Final = (
    "incomplete: upstream failed, these are the tags that have been asked for here"
)


class Listings:
    """Lists tags and repositories. ``has_catalog`` False refuses the latter."""

    def __init__(self, index: Index, sources: Mapping[str, Source], *, has_catalog: bool) -> None:
        self._index = index
        self._sources = sources
        self._has_catalog = has_catalog

    async def tags(self, target: Target, n: int | None, last: str | None) -> Listed:
        """Return up to ``n`` tags behind ``last`` (None: all that upstream gives at once).

        Upstream's own, or those known here when it is away. Raises ``RegistryError``.
        """
        source = self._sources[target.upstream]
        if source.rule.offline:
            return await self._known(target, n, last, Outcome.HIT)
        query = {} if n is None else {"n": str(n)}
        if last is not None:
            query["last"] = last
        try:
            page = await source.upstream.tags(target.repo, query)
        except UpstreamFailure as error:
            try:
                return await self._known(target, n, last, Outcome.STALE)
            except NameUnknown:
                raise error from None
        return _paged(page, n, last)

    async def repositories(self, n: int | None, last: str | None) -> Listed:
        """Return up to ``n`` names behind ``last``, each with its upstream in front.

        Raises ``Denied`` unless the catalog is switched on: names tell.
        """
        if not self._has_catalog:
            raise Denied("the catalog is switched off; to list what is held, set catalog: true")
        names = sorted(str(target) for target in await self._index.repositories())
        return _cut([name for name in names if last is None or name > last], n, Outcome.HIT)

    async def _known(
        self, target: Target, n: int | None, last: str | None, outcome: Outcome
    ) -> Listed:
        known = await self._index.tags(target)
        if not known:
            raise NameUnknown(f"no tags of {target} are known, and this is offline")
        warning = INCOMPLETE_WARNING if outcome is Outcome.STALE else None
        return _cut([tag for tag in known if last is None or tag > last], n, outcome, warning)


def _paged(page: TagPage, n: int | None, last: str | None) -> Listed:
    """Return upstream's page as the specification wants it.

    An upstream that pages is believed. One that does not (distribution before 3 ignores ``n`` and
    ``last``, and does not sort) is sorted and paged here.
    """
    if page.last is not None:
        return Listed(page.tags, page.last, Outcome.THROUGH)
    names = sorted(page.tags)
    if last in names:
        names = names[names.index(last) + 1 :]
    return _cut(names, n, Outcome.THROUGH)


def _cut(names: list[str], n: int | None, outcome: Outcome, warning: str | None = None) -> Listed:
    page = names if n is None else names[:n]
    further = page[-1] if page and len(page) < len(names) else None
    return Listed(page, further, outcome, warning)
