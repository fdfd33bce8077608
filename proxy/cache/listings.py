"""Answers for lists: a repository's tags, and the repositories that are known here."""

from collections.abc import Mapping
from typing import Final

from proxy.cache.answers import Listed
from proxy.cache.sources import Source
from proxy.errors import Denied, NameUnknown, NotHeld, UpstreamFailure
from proxy.index import Index
from proxy.metrics import Outcome
from proxy.names import Target
from proxy.policy import Wish
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

    async def tags(self, target: Target, query: dict[str, str], asked: Wish) -> Listed:
        """Return one page of tags; ``query`` holds ``n`` and ``last``, or what the last page said.

        Upstream's own, or those known here when it is away. Raises ``RegistryError``.
        """
        source = self._sources[target.upstream]
        if asked is Wish.HELD:
            try:
                return await self._known(target, query, Outcome.HIT)
            except NameUnknown:
                raise NotHeld(f"no tags of {target} are known") from None
        if source.rule.offline:
            return await self._known(target, query, Outcome.HIT)
        try:
            page = await source.upstream.tags(target.repo, query)
        except UpstreamFailure as error:
            try:
                return await self._known(target, query, Outcome.STALE)
            except NameUnknown:
                raise error from None
        return _paged(page, query)

    async def repositories(self, query: dict[str, str]) -> Listed:
        """Return up to ``n`` names behind ``last``, each with its upstream in front.

        Raises ``Denied`` unless the catalog is switched on: names tell.
        """
        if not self._has_catalog:
            raise Denied("the catalog is switched off; to list what is held, set catalog: true")
        names = sorted(str(target) for target in await self._index.repositories())
        return _behind(names, query, Outcome.HIT)

    async def _known(self, target: Target, query: dict[str, str], outcome: Outcome) -> Listed:
        known = await self._index.tags(target)
        if not known:
            raise NameUnknown(f"no tags of {target} are known, and this is offline")
        warning = INCOMPLETE_WARNING if outcome is Outcome.STALE else None
        return _behind(list(known), query, outcome, warning)


def _paged(page: TagPage, query: dict[str, str]) -> Listed:
    """Return upstream's page as the specification wants it.

    An upstream that pages is believed. One that does not (distribution before 3 ignores ``n`` and
    ``last``, and does not sort) is sorted and paged here.
    """
    if page.further:
        return Listed(page.tags, page.further, Outcome.THROUGH)
    names, last = sorted(page.tags), query.get("last")
    if last in names:
        return _behind(names, query, Outcome.THROUGH)
    return _cut(names, query, Outcome.THROUGH)


def _behind(
    names: list[str], query: dict[str, str], outcome: Outcome, warning: str | None = None
) -> Listed:
    last = query.get("last", "")
    return _cut([name for name in names if name > last], query, outcome, warning)


def _cut(
    names: list[str], query: dict[str, str], outcome: Outcome, warning: str | None = None
) -> Listed:
    if "n" not in query or len(names) <= int(query["n"]):
        return Listed(names, {}, outcome, warning)
    page = names[: int(query["n"])]
    return Listed(page, {"n": query["n"], "last": page[-1]} if page else {}, outcome, warning)
