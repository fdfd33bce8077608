"""Drops images on request: their tags, and the content that nothing else needs.

A dropped tag is deleted with its history, and from ``index.json``, so that it can return only from
upstream. Content stays if another tag, a pin, another held manifest or another repository needs it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Set
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Final

from proxy.content.content import Content
from proxy.content.facts import Tree
from proxy.content.pins import Pins
from proxy.core.errors import StorageUnavailable
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, disk_bytes
from proxy.core.selection import Selector
from proxy.runtime.executors import run_to_completion
from proxy.services.oci_index import Layout, wrapper_of

LOAD_SECONDS: Final = 60.0
_BATCH: Final = 256

Event = dict[str, Any]
Forget = Callable[[Target, Iterable[Digest]], Awaitable[None]]
"""Removes dropped content of a repository from RAM, and its list of tags."""


@dataclass(frozen=True, slots=True)
class _Image:
    """A tag to drop, and its present and past manifests."""

    target: Target
    tag: Tag
    roots: tuple[Digest, ...]


@dataclass(slots=True)
class _Plan:
    """What to delete: tags, links and content.

    ``others`` are the manifests that the other tags of each repository point to, ``trees`` has the
    content below each manifest of ``images``. ``wrappers`` are held only so that readers of the
    OCI layout find Docker's manifests.
    """

    images: list[_Image] = field(default_factory=list)
    refused: list[Event] = field(default_factory=list)
    others: dict[Target, set[Digest]] = field(default_factory=dict)
    links: dict[Target, set[Digest]] = field(default_factory=dict)
    trees: dict[Digest, Tree] = field(default_factory=dict)
    content: dict[Digest, BlobRecord] = field(default_factory=dict)
    wrappers: dict[Digest, BlobRecord] = field(default_factory=dict)

    @property
    def targets(self) -> Set[Target]:
        """The repositories from which something is dropped."""
        return {image.target for image in self.images} | self.links.keys()

    @property
    def sizes(self) -> dict[Digest, int]:
        """What each piece of content takes on disk, in bytes."""
        content = self.content | self.wrappers
        return {digest: disk_bytes(record.size) for digest, record in content.items()}


class Dropper:
    """Plans and executes a drop."""

    def __init__(self, content: Content, pins: Pins, layout: Layout, forget: Forget) -> None:
        self._content = content
        self._pins = pins
        self._layout = layout
        self._forget = forget
        self._dropping = asyncio.Lock()

    async def preview(self, selector: Selector) -> AsyncGenerator[Event]:
        """Yield the events of ``drop`` without dropping anything."""
        for event in _events(await self._planned(selector), selector):
            yield event

    async def drop(self, selector: Selector) -> AsyncGenerator[Event]:
        """Drop the selected images; yield an event for each, and the sums.

        Pinned images stay, and are marked in their events. Raises ``StorageUnavailable`` while
        ``index.json`` cannot be read.
        """
        async with self._dropping:  # two at once would each leave what both point to
            while True:
                pins, plan = self._pins.revision, await self._planned(selector)
                if pins == self._pins.revision:  # else an image may have been pinned meanwhile
                    break
            await run_to_completion(self._carry_out(plan, selector))
        for event in _events(plan, selector):
            yield event

    async def _planned(self, selector: Selector) -> _Plan:
        try:
            async with asyncio.timeout(LOAD_SECONDS):
                await self._layout.loaded()
        except TimeoutError:
            raise StorageUnavailable("index.json has not been read yet; try again") from None
        plan = _Plan()
        await self._choose_tags(plan, selector)
        await self._choose_links(plan, selector)
        roots = (root for image in plan.images for root in image.roots)
        plan.trees = {root: tree async for root, tree in self._content.graph.trees(roots)}
        await self._choose_content(plan)
        return plan

    async def _choose_tags(self, plan: _Plan, selector: Selector) -> None:
        """Choose the tags to drop, and note the manifests of all other tags."""
        async for batch in self._content.tags.all():
            for one in batch:
                target, tag, digest = one.target, one.tag, one.digest
                if not selector.matches(target, tag, digest):
                    plan.others.setdefault(target, set()).add(digest)
                elif pins := self._pins.pinning(target, tag, digest):
                    plan.others.setdefault(target, set()).add(digest)
                    reason = f"pinned as {', '.join(pins)}"
                    plan.refused.append(_event(one.name, digest, reason=reason))
                else:
                    history = await self._content.tags.history(target, tag)
                    roots = dict.fromkeys([digest, *(entry.digest for entry in history)])
                    plan.images.append(_Image(target, tag, tuple(roots)))

    async def _choose_links(self, plan: _Plan, selector: Selector) -> None:
        """Choose the links to remove besides those of tags.

        If whole repositories are selected these are all their links, if a digest is selected those
        of this digest.
        """
        digest = selector.digest
        if selector.is_of_repositories:
            staying = {event["digest"] for event in plan.refused}
            trees = await self._below(staying)
            held = await self._content.links.of(selector.covers)
            plan.links = {target: digests - trees.keys() for target, digests in held.items()}
        elif digest is not None and not plan.refused:
            found = await self._content.links.holders(digest)
            holders = [holder for holder in found if selector.covers(holder)]
            if holders and (reason := await self._needed(digest)):
                plan.refused.append(_event(str(selector), digest, reason=reason))
            elif await self._content.record(digest) is not None:
                plan.links = {target: {digest} for target in holders}

    async def _needed(self, digest: Digest) -> str | None:
        """Return why one digest must stay, None if it may go."""
        if digest in await self._pins.pinned():
            return "pinned"
        return "part of another image" if await self._content.graph.is_listed(digest) else None

    async def _choose_content(self, plan: _Plan) -> None:
        """Choose the content to delete: below the dropped tags and links, and not needed.

        Four reasons to stay: another tag points to it, a pin has it, a manifest that stays lists
        it, or, for a manifest, another repository holds it.
        """
        graph = self._content.graph
        below = dict.fromkeys(chain(*plan.trees.values()))
        below |= await self._below({*chain(*plan.links.values())} - below.keys())
        candidates = await self._content.records(below)
        listed = await graph.listed_by_others(below.keys())
        needed = listed.union(await self._pins.pinned(), *plan.others.values())
        targets = plan.targets
        staying = [
            digest
            for digest, record in candidates.items()
            if digest in needed or await self._is_held_elsewhere(record, targets)
        ]
        needed = set(await self._below(staying))
        plan.content = {d: record for d, record in candidates.items() if d not in needed}
        wrappers = [wrapper_of(one.descriptor) for one in plan.content.values()]
        plan.wrappers = await self._content.records(one for one in wrappers if one is not None)
        await self._choose_links_of_tags(plan, listed)

    async def _choose_links_of_tags(self, plan: _Plan, listed: set[Digest]) -> None:
        """Choose the links to remove with the tags of a repository.

        These are links to content that is deleted, and to manifests that stay only for another
        repository: a link to these would keep them when that repository is dropped too.
        """
        below: dict[Target, set[Digest]] = {}
        for image in plan.images:
            trees = (plan.trees[root] for root in image.roots)
            below.setdefault(image.target, set()).update(*trees)
        for target, digests in below.items():
            others = await self._below(plan.others.get(target, ()))
            records = await self._content.records(digests - listed - others.keys())
            manifests = {digest for digest, record in records.items() if _is_manifest(record)}
            plan.links.setdefault(target, set()).update(digests & plan.content.keys(), manifests)

    async def _below(self, roots: Iterable[Digest]) -> dict[Digest, None]:
        """Return manifests and all that they list."""
        trees = self._content.graph.trees(roots)
        return {digest: None async for _, tree in trees for digest in tree}

    async def _is_held_elsewhere(self, record: BlobRecord, targets: Set[Target]) -> bool:
        """Return True for a manifest of a repository that is not in ``targets``."""
        if not _is_manifest(record):
            return False
        holders = await self._content.links.holders(record.digest)
        return any(holder not in targets for holder in holders)

    async def _carry_out(self, plan: _Plan, selector: Selector) -> None:
        """Delete names first, then links, then content: an interrupted drop serves nothing."""
        content, graph = self._content, self._content.graph
        for image in plan.images:
            await content.tags.drop(image.target, image.tag)
        for target, digests in plan.links.items():
            await content.links.remove(target, digests)
        manifests = [digest for digest, record in plan.content.items() if _is_manifest(record)]
        await self._discard(manifests)
        # A manifest that was stored since the plan was made may list some of the rest.
        await self._discard([d for d in plan.content if not await graph.is_listed(d)])
        for target in plan.targets:
            await self._forget(target, plan.links.get(target, set()))
        await self._layout.publish_if_changed()
        await self._discard(list(plan.wrappers))  # last: until now index.json may have named them

    async def _discard(self, digests: list[Digest]) -> None:
        for start in range(0, len(digests), _BATCH):
            await self._content.evictor.discard(digests[start : start + _BATCH])


def _events(plan: _Plan, selector: Selector) -> list[Event]:
    """Return the events; content that several images share is counted with the first of them."""
    sizes = plan.sizes
    left, events, freed = dict(sizes), list(plan.refused), sum(sizes.values())
    if selector.digest is not None and plan.links and not plan.images:
        events.append(_event(str(selector), selector.digest, freed))
    for image in plan.images:
        below = [digest for root in image.roots for digest in plan.trees[root]]
        own = sum(left.pop(digest, 0) for digest in below)
        events.append(_event(f"{image.target}:{image.tag}", image.roots[0], own))
    dropped = sum(1 for event in events if event["dropped"])
    done = {"event": "done", "images": dropped, "refused": len(plan.refused)}
    return [*events, done | {"blobs": len(sizes), "bytes": freed}]


def _is_manifest(record: BlobRecord) -> bool:
    return record.media_type is not None


def _event(name: str, digest: Digest, freed: int = 0, reason: str | None = None) -> Event:
    """Return the event of one image; ``reason`` is why it stays."""
    known = {"event": "image", "name": name, "digest": digest}
    return known | {"dropped": reason is None, "reason": reason, "bytes": freed}
