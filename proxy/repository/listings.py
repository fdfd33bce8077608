"""The read-through for lists: the tags of a repository, and the known repositories."""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Final

from proxy.content.content import Content
from proxy.core import policy
from proxy.core.errors import Denied, NameUnknown, NotFound, NotHeld, UpstreamFailure
from proxy.core.names import Target
from proxy.core.policy import Action, CacheDirective
from proxy.repository.origins import Origin
from proxy.repository.results import Forward, NamePage
from proxy.repository.tag_lists import TagLists
from proxy.runtime.metrics import Outcome
from proxy.upstream.registry import TagPage

MAX_PAGES: Final = 16
"""Maximum number of pages read from one upstream at a time.

A page takes several times its size in memory, and arrives faster than it is parsed and written.
"""

_SLICE: Final = 100
_FAILED: Final = "upstream failed"
_OFFLINE: Final = "this is offline"
_NOT_ASKED: Final = "upstream was not asked"


class Listings:
    """Lists tags and repositories. ``has_catalog`` False refuses the latter."""

    def __init__(
        self,
        content: Content,
        lists: TagLists,
        sources: Mapping[str, Origin],
        *,
        has_catalog: bool,
    ) -> None:
        self._content = content
        self._lists = lists
        self._sources = sources
        self._clock = content.clock
        self._has_catalog = has_catalog
        self._pages = defaultdict[str, asyncio.Semaphore](lambda: asyncio.Semaphore(MAX_PAGES))

    async def tags(
        self, target: Target, query: dict[str, str], directive: CacheDirective
    ) -> NamePage:
        """Return one page of tags; ``query`` holds ``n`` and ``last``, or the last page's query.

        The page is upstream's. If upstream fails or may not be asked, it comes from the last known
        list and the tags pulled here, with a ``Warning``. Raises ``RegistryError``.
        """
        is_offline = self._sources[target.upstream].rule.offline
        if is_offline or directive is CacheDirective.ONLY_IF_CACHED:
            held = await self._held(target, query, _OFFLINE if is_offline else _NOT_ASKED)
            if held is not None:
                return held
            if is_offline:
                raise NameUnknown(f"no tags of {target} are known, and this is offline")
            raise NotHeld(f"no tags of {target} are known")
        try:
            async with self._pages[target.upstream]:
                page = await self._sources[target.upstream].upstream.tags(target.repo, query)
                await self._lists.add(target, page, query)
        except NotFound:
            await self._lists.forget(target)
            raise
        except UpstreamFailure as error:
            held = await self._held(target, query, _FAILED, error)
            if held is None:
                raise
            return replace(
                held, outcome=Outcome.STALE, forward=Forward(error.upstream_status, error)
            )
        return _paged(page, query)

    @property
    def is_offline(self) -> bool:
        """No registry may be asked."""
        return all(source.rule.offline for source in self._sources.values())

    async def repositories(
        self, query: dict[str, str], is_visible: Callable[[Target], bool]
    ) -> NamePage:
        """Return up to ``n`` visible names after ``last``, each with its upstream in front.

        Raises ``Denied`` unless the catalog is switched on, because names may be confidential.
        """
        if not self._has_catalog:
            raise Denied(
                "the catalog is switched off; to list the cached repositories, set catalog: true"
            )
        targets = {str(target): target for target in await self._content.tags.repositories()}
        names: list[str] = []
        for count, name in enumerate(sorted(targets), 1):
            if is_visible(targets[name]):
                names.append(name)
            if count % _SLICE == 0:
                await asyncio.sleep(0)
        return _after(names, query, Outcome.HIT)

    async def _held(
        self,
        target: Target,
        query: dict[str, str],
        reason: str,
        error: UpstreamFailure | None = None,
    ) -> NamePage | None:
        """Return a page of the tags known here; None if there are none.

        After an ``error`` the last known list may be as old as any stale answer.
        """
        last_list = await self._lists.get(target)
        if last_list is not None and error is not None:
            rule, now = self._sources[target.upstream].rule, self._clock()
            if policy.on_failure(last_list.seen_at, rule, now, error) is not Action.SERVE:
                last_list = None
        known = await self._content.tags.of(target)
        if last_list is None and not known:
            return None
        names = sorted({*known, *(() if last_list is None else last_list.tags)})
        warning = f"incomplete: {reason}, these are the tags that the cache knows"
        if last_list is not None and last_list.is_complete:
            warning = f"stale: {reason}, these are the tags that were last seen"
        return _after(names, query, Outcome.HIT, warning)


def _paged(page: TagPage, query: dict[str, str]) -> NamePage:
    """Return upstream's page in the order and length that the specification requires.

    A page with a link to the next one is sent as it is. Other pages are sorted and cut here:
    distribution before version 3 ignores ``n`` and ``last``, and does not sort.
    """
    if page.next_query:
        return NamePage(page.tags, page.next_query, Outcome.THROUGH)
    names, last = sorted(page.tags), query.get("last")
    if last in names:
        return _after(names, query, Outcome.THROUGH)
    return _cut(names, query, Outcome.THROUGH)


def _after(
    names: list[str], query: dict[str, str], outcome: Outcome, warning: str | None = None
) -> NamePage:
    last = query.get("last", "")
    return _cut([name for name in names if name > last], query, outcome, warning)


def _cut(
    names: list[str], query: dict[str, str], outcome: Outcome, warning: str | None = None
) -> NamePage:
    if "n" not in query or len(names) <= int(query["n"]):
        return NamePage(names, {}, outcome, warning)
    page = names[: int(query["n"])]
    return NamePage(page, {"n": query["n"], "last": page[-1]} if page else {}, outcome, warning)
