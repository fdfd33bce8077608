"""Drops images on request: their tags, and the content that nothing else needs.

A dropped tag is forgotten with its history, and ``index.json`` is written without it, so that it
comes back only by asking upstream. Content stays if another tag, a pin, another held manifest or
another repository needs it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Container, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.content.content import Content
from proxy.content.pins import Pins
from proxy.core.errors import StorageUnavailable
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import Descriptor, disk_bytes
from proxy.core.selection import Selector
from proxy.runtime.executors import to_its_end
from proxy.services.inventory import tree
from proxy.services.oci_index import Layout

RECALL_SECONDS: Final = 60.0
_BATCH: Final = 256
_SLICE: Final = 250

Event = dict[str, Any]
Forget = Callable[[Target, Iterable[Digest]], Awaitable[None]]
"""Has the memory of manifests forget what a repository no longer holds, and its list of tags."""


@dataclass(frozen=True, slots=True)
class _Image:
    """A tag to drop, and the manifests that it points or pointed to."""

    target: Target
    tag: Tag
    roots: tuple[Digest, ...]


@dataclass(slots=True)
class _Plan:
    """What goes: tags, links and content. ``trees`` has the content below each root.

    ``wrappers`` are held only so that readers of the layout find Docker's manifests.
    """

    images: list[_Image] = field(default_factory=list)
    refused: list[Event] = field(default_factory=list)
    links: dict[Target, set[Digest]] = field(default_factory=dict)
    trees: dict[Digest, list[Digest]] = field(default_factory=dict)
    content: list[Digest] = field(default_factory=list)
    wrappers: list[Digest] = field(default_factory=list)


class Dropper:
    """Plans a drop and carries it out."""

    def __init__(self, content: Content, pins: Pins, layout: Layout, forget: Forget) -> None:
        self._index = content.index
        self._evictor = content.evictor
        self._pins = pins
        self._layout = layout
        self._forget = forget
        self._dropping = asyncio.Lock()

    async def foretell(self, selector: Selector) -> AsyncGenerator[Event]:
        """Yield what ``drop`` would: an event for each image, and the sums."""
        plan = await self._planned(selector)
        sizes = self._sizes([*plan.content, *plan.wrappers])
        for event in self._events(plan, sizes, selector):
            yield event

    async def drop(self, selector: Selector) -> AsyncGenerator[Event]:
        """Drop the selected images; yield an event for each, and the sums.

        Pinned images stay, which their events say. Raises ``StorageUnavailable`` while
        ``index.json`` cannot be read.
        """
        async with self._dropping:  # else two would leave to each other what both point to
            plan = await self._planned(selector)
            sizes = self._sizes([*plan.content, *plan.wrappers])
            await to_its_end(self._carry_out(plan, selector))
        for event in self._events(plan, sizes, selector):
            yield event

    async def _planned(self, selector: Selector) -> _Plan:
        await self._index.ready()
        try:
            async with asyncio.timeout(RECALL_SECONDS):
                await self._layout.recalled()
        except TimeoutError:
            raise StorageUnavailable("index.json has not been read yet; try again") from None
        plan = _Plan()
        others = await self._choose_tags(plan, selector)
        await self._choose_links(plan, selector)
        for root in self._roots(plan):
            plan.trees[root] = tree(self._index, root)
        await self._choose_content(plan, others)
        return plan

    async def _choose_tags(self, plan: _Plan, selector: Selector) -> dict[Target, set[Digest]]:
        """Choose the tags to drop; return what the other tags of each repository point to."""
        others: dict[Target, set[Digest]] = {}
        for count, (target, tag, record) in enumerate(self._index.tagged()):
            if count % _SLICE == 0:
                await asyncio.sleep(0)
            digest = record.descriptor.digest
            if not selector.matches(target, tag, digest):
                others.setdefault(target, set()).add(digest)
            elif pins := self._pins.pinning(target, tag, digest):
                others.setdefault(target, set()).add(digest)
                reason = f"pinned as {', '.join(pins)}"
                plan.refused.append(_refusal(f"{target}:{tag}", digest, reason))
            else:
                history = await self._index.history(target, tag)
                roots = dict.fromkeys([digest, *(sighting.digest for sighting in history)])
                plan.images.append(_Image(target, tag, tuple(roots)))
        return others

    async def _choose_links(self, plan: _Plan, selector: Selector) -> None:
        """Choose what repositories are no longer said to hold: everything, or one digest."""
        digest = selector.digest
        if selector.is_of_repositories:
            kept = {event["digest"] for event in plan.refused}
            trees = {below for root in kept for below in tree(self._index, root)}
            held = await self._index.linked_to(selector.has)
            plan.links = {target: digests - trees for target, digests in held.items()}
        elif digest is not None and not plan.refused:
            holders = [one for one in await self._index.holders(digest) if selector.has(one)]
            if holders and (reason := self._needed(digest)):
                plan.refused.append(_refusal(str(selector), digest, reason))
            elif self._index.held(digest) is not None:
                plan.links = {target: {digest} for target in holders}

    def _needed(self, digest: Digest) -> str | None:
        """Return why one digest must stay, None if it may go."""
        if digest in self._pins.pinned():
            return "pinned"
        return "part of another image" if self._index.is_listed(digest) else None

    def _roots(self, plan: _Plan) -> list[Digest]:
        tagged = [root for image in plan.images for root in image.roots]
        linked = [digest for digests in plan.links.values() for digest in digests]
        return list(dict.fromkeys([*tagged, *linked]))

    async def _choose_content(self, plan: _Plan, others: dict[Target, set[Digest]]) -> None:
        """Choose the content that nothing needs which stays.

        Four reasons to stay: another tag points to it, a pin has it, a manifest that stays lists
        it, or, for a manifest, another repository holds it.
        """
        candidates = {digest: None for below in plan.trees.values() for digest in below}
        listed = await self._listed_besides(candidates)
        needed = listed | self._pins.pinned() | {d for some in others.values() for d in some}
        staying = {digest for digest in candidates if digest in needed}
        for digest in candidates:
            if digest not in staying and await self._is_held_elsewhere(digest, plan):
                staying.add(digest)
        staying = {below for digest in staying for below in tree(self._index, digest)}
        plan.content = [d for d in candidates if d not in staying and self._index.held(d)]
        plan.wrappers = self._wrappers(plan.content)
        self._choose_links_of_tags(plan, others, listed)

    def _wrappers(self, content: list[Digest]) -> list[Digest]:
        """Return what the layout holds only so that its readers find these."""
        records = [record for d in content if (record := self._index.held(d)) is not None]
        held = (Descriptor(one.media_type or "", one.digest, one.size) for one in records)
        return [digest for one in held if (digest := self._layout.wrapper(one)) is not None]

    async def _listed_besides(self, candidates: Container[Digest]) -> set[Digest]:
        """Return the candidates that held manifests list which are no candidates themselves."""
        listed: set[Digest] = set()
        for count, manifest in enumerate(self._index.manifests()):
            if count % _SLICE == 0:
                await asyncio.sleep(0)
            if manifest not in candidates:
                children = self._index.children(manifest)
                listed |= {child.digest for child in children if child.digest in candidates}
        return listed

    def _choose_links_of_tags(
        self, plan: _Plan, others: dict[Target, set[Digest]], listed: set[Digest]
    ) -> None:
        """Choose what a repository no longer holds once its tags are dropped.

        That is the content that goes, and the manifests that stay for another repository alone: a
        link to these would keep them when that repository is dropped too.
        """
        gone = set(plan.content)
        for image in plan.images:
            roots = others.get(image.target, set())
            needed = listed.union(*(tree(self._index, root) for root in roots))
            below = {digest for root in image.roots for digest in plan.trees[root]}
            manifests = {d for d in below if d not in needed and self._is_manifest(d)}
            plan.links.setdefault(image.target, set()).update(below & gone, manifests)

    async def _is_held_elsewhere(self, digest: Digest, plan: _Plan) -> bool:
        """Return True for a manifest that a repository holds from which nothing is dropped."""
        record = self._index.held(digest)
        if record is None or record.media_type is None:
            return False
        dropping = {image.target for image in plan.images} | plan.links.keys()
        return any(holder not in dropping for holder in await self._index.holders(digest))

    async def _carry_out(self, plan: _Plan, selector: Selector) -> None:
        """Forget names first, then links, then content: whatever is interrupted serves nothing."""
        for image in plan.images:
            await self._index.forget_tag(image.target, image.tag)
        for target, digests in plan.links.items():
            await self._index.unlink(target, digests)
        if selector.is_of_repositories:
            await self._index.forget_referrers(selector.has)
        manifests = [digest for digest in plan.content if self._is_manifest(digest)]
        await self._discard(manifests)
        await self._discard([d for d in plan.content if not self._index.is_listed(d)])
        for target in {image.target for image in plan.images} | plan.links.keys():
            await self._forget(target, plan.links.get(target, set()))
        await self._layout.keep()
        await self._discard(plan.wrappers)  # behind the last one that may have written them

    async def _discard(self, digests: list[Digest]) -> None:
        for start in range(0, len(digests), _BATCH):
            await self._evictor.discard(digests[start : start + _BATCH])

    def _is_manifest(self, digest: Digest) -> bool:
        record = self._index.held(digest)
        return record is not None and record.media_type is not None

    def _sizes(self, digests: list[Digest]) -> dict[Digest, int]:
        """Return what each of these takes on disk, in bytes."""
        records = (self._index.held(digest) for digest in digests)
        return {record.digest: disk_bytes(record.size) for record in records if record is not None}

    def _events(self, plan: _Plan, sizes: dict[Digest, int], selector: Selector) -> list[Event]:
        """Return the events; what several images share is counted with the first of them."""
        left, events = dict(sizes), list(plan.refused)
        if selector.digest is not None and plan.links and not plan.images:
            freed = sum(sizes.values())
            events.append(_dropped(str(selector), selector.digest, freed))
        for image in plan.images:
            below = [digest for root in image.roots for digest in plan.trees[root]]
            freed = sum(left.pop(digest, 0) for digest in below)
            name = f"{image.target}:{image.tag}"
            events.append(_dropped(name, image.roots[0], freed))
        dropped = sum(1 for event in events if event["dropped"])
        done = {"event": "done", "images": dropped, "refused": len(plan.refused)}
        return [*events, done | {"blobs": len(sizes), "bytes": sum(sizes.values())}]


def _refusal(name: str, digest: Digest, reason: str) -> Event:
    known = {"event": "image", "name": name, "digest": digest}
    return known | {"dropped": False, "reason": reason, "bytes": 0}


def _dropped(name: str, digest: Digest, freed: int) -> Event:
    known = {"event": "image", "name": name, "digest": digest}
    return known | {"dropped": True, "reason": None, "bytes": freed}
