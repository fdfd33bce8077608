"""Finds the images that a pattern selects, at its registry and in this cache.

A registry lists its repositories in its catalogue, if it has one that Millpond may read. Docker
Hub, GHCR and others do not; for these, only repositories that this cache knows are found.
"""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from proxy.content.content import Content
from proxy.content.facts import TaggedImage
from proxy.core.errors import (
    Denied,
    NameInvalid,
    NotFound,
    RegistryError,
    RequestInvalid,
    TagInvalid,
    UpstreamRejected,
)
from proxy.core.names import Tag, Target, parse_repo, parse_tag
from proxy.core.policy import CacheDirective
from proxy.core.selection import Selector, is_pattern
from proxy.repository.listings import Listings
from proxy.repository.origins import Origin
from proxy.runtime.metrics import Outcome

MAX_IMAGES: Final = 10_000
MAX_REPOSITORIES: Final = 100_000
MAX_PAGES: Final = 1000

_REFUSALS: Final = (NotFound, Denied, UpstreamRejected)
"""Answers of a registry without a catalogue, or with one for its operators only."""

_ONLY_KNOWN: Final = "only those that are known here are found"


@dataclass(slots=True)
class Expanded:
    """The images that a pattern selects, sorted, and why there may be more.

    ``notes`` are about registries that list no repositories, as most do; ``problems`` about lists
    that could not be had.
    """

    images: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


class Expansion:
    """Finds images by pattern."""

    def __init__(self, content: Content, sources: Mapping[str, Origin], listings: Listings) -> None:
        self._content = content
        self._sources = sources
        self._listings = listings

    async def images(self, selector: Selector) -> Expanded:
        """Return the selected images with their tags. Raises ``RequestInvalid`` for too many."""
        found = Expanded()
        if selector.digest is not None:
            found.images.append(str(selector))
            return found
        for target in sorted(await self._targets(selector, found)):
            try:
                tags = [tag async for tag in self._tags(target, found)]
            except RegistryError as error:
                found.problems.append(f"{target}: {error.message}")
                continue
            chosen = (tag for tag in tags if selector.tags is None or selector.tags.match(tag))
            found.images += sorted(f"{target}:{tag}" for tag in chosen)
            if len(found.images) > MAX_IMAGES:
                raise RequestInvalid(f"{selector} selects more than {MAX_IMAGES:,} images")
        if not found.images:
            found.problems.append("selects no image")
        return found

    async def known(self, selector: Selector) -> AsyncIterator[TaggedImage]:
        """Yield the selected tags that are known here, sorted; the registry is not asked."""
        async for batch in self._content.tags.all():
            for one in batch:
                if selector.matches(one.target, one.tag, one.digest):
                    yield one

    async def _targets(self, selector: Selector, found: Expanded) -> set[Target]:
        """Return the repositories that a pattern covers."""
        name = selector.repositories.text
        if not is_pattern(name):
            upstream, _, repository = name.partition("/")
            return {Target(upstream, parse_repo(repository))}
        known = await self._content.tags.repositories()
        targets = {one for one in known if one.upstream in self._sources and selector.covers(one)}
        for upstream in self._upstreams(name):
            if self._sources[upstream].rule.offline:
                found.notes.append(f"{upstream} is offline; {_ONLY_KNOWN}")
                continue
            try:
                async for target in self._catalog(upstream):
                    if selector.covers(target):
                        targets.add(target)
            except RegistryError as error:
                reasons = found.notes if isinstance(error, _REFUSALS) else found.problems
                reasons.append(
                    f"{upstream} does not list its repositories ({error.message}); {_ONLY_KNOWN}"
                )
        return targets

    def _upstreams(self, name: str) -> Iterator[str]:
        """Yield the upstreams that a pattern may match: all, if it begins with a wildcard."""
        first = name.partition("/")[0]
        yield from (one for one in self._sources if is_pattern(first) or one == first)

    async def _catalog(self, upstream: str) -> AsyncIterator[Target]:
        """Yield a registry's repositories. Raises ``RegistryError``."""
        query: dict[str, str] = {}
        count = 0
        while count == 0 or query:
            page = await self._sources[upstream].upstream.repositories(query)
            count += max(1, len(page.repositories))
            if count > MAX_REPOSITORIES:
                raise RequestInvalid(f"it has more than {MAX_REPOSITORIES:,}")
            for repository in page.repositories:
                with suppress(NameInvalid):
                    yield Target(upstream, parse_repo(repository))
            query = page.next_query

    async def _tags(self, target: Target, found: Expanded) -> AsyncIterator[Tag]:
        """Yield a repository's tags, as a client would get them. Raises ``RegistryError``.

        A list that is not the registry's, because that failed, is a problem.
        """
        query: dict[str, str] = {}
        is_first, pages = True, 0
        while is_first or query:
            try:
                page = await self._listings.tags(target, query, CacheDirective.ANY)
            except NotFound:
                return
            if page.outcome is Outcome.STALE and is_first:
                found.problems.append(f"{target}: its list of tags is {page.warning}")
            for name in page.names:
                with suppress(TagInvalid):
                    yield parse_tag(name)
            query, is_first = page.next_query, False
            pages += 1
            if pages > MAX_PAGES:
                raise RequestInvalid(f"its list of tags has more than {MAX_PAGES:,} pages")
