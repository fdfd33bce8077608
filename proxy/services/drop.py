"""Drops images on request: their tags, and the content that nothing else needs.

A dropped tag is deleted with its history, and from ``index.json``, so that it can return only from
upstream. Content stays if another tag, a pin, another held manifest or another repository needs it.

A drop may be of a whole cache, so all work is in steps, between which other work goes on.
"""

import asyncio
from collections import Counter
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Set,
)
from dataclasses import dataclass, field
from itertools import chain, groupby, islice
from typing import Any, Final, TypeVar

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
_STEP: Final = 20
"""Images that are dropped in one step."""

Event = dict[str, Any]
Forget = Callable[[Target, Iterable[Digest]], Awaitable[None]]
"""Removes dropped content of a repository from RAM, and its list of tags."""

Item = TypeVar("Item")


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
    content below each manifest of ``images``. ``content`` has the disk bytes of each digest, and
    ``manifests`` those of its digests that are manifests. ``late`` is content that can be deleted
    only after all images. ``wrappers`` are held only so that readers of the OCI layout find
    Docker's manifests.
    """

    images: list[_Image] = field(default_factory=list)
    refused: list[Event] = field(default_factory=list)
    others: dict[Target, set[Digest]] = field(default_factory=dict)
    links: dict[Target, set[Digest]] = field(default_factory=dict)
    trees: dict[Digest, Tree] = field(default_factory=dict)
    content: dict[Digest, int] = field(default_factory=dict)
    manifests: set[Digest] = field(default_factory=set)
    late: list[Digest] = field(default_factory=list)
    wrappers: dict[Digest, int] = field(default_factory=dict)

    @property
    def targets(self) -> Set[Target]:
        """The repositories from which something is dropped."""
        return {image.target for image in self.images} | self.links.keys()

    def by_target(self) -> Iterator[tuple[Target, Iterator[_Image]]]:
        """Yield each repository with its images."""
        yield from groupby(self.images, lambda image: image.target)

    def below(self, images: Iterable[_Image]) -> Iterator[Digest]:
        """Yield the content of images; what they share more than once."""
        for image in images:
            for root in image.roots:
                yield from self.trees[root]


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
        async for event in _events(await self._planned(selector), selector):
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
            await run_to_completion(self._carry_out(plan))
        async for event in _events(plan, selector):
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
            for target, digests in held.items():
                plan.links[target] = digests - trees.keys()
                await asyncio.sleep(0)
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
        below: dict[Digest, None] = {}
        async for part in _parts(plan.below(plan.images)):
            below |= dict.fromkeys(part)
        async for part in _parts(chain.from_iterable(plan.links.values())):
            below |= await self._below(digest for digest in part if digest not in below)
        listed: set[Digest] = set()
        async for part in _parts(below):
            listed |= await self._content.graph.listed_by_others(part, below.keys())
        named: set[Digest] = set()
        async for part in _parts(chain.from_iterable(plan.others.values())):
            named.update(part)
        wrappers = await self._sort_out(plan, below, [listed, named, await self._pins.pinned()])
        async for part in _parts(wrappers):
            for digest, record in (await self._content.records(part)).items():
                if digest not in plan.content:
                    plan.wrappers[digest] = disk_bytes(record.size)
        await self._choose_links_of_tags(plan, listed)

    async def _sort_out(
        self, plan: _Plan, below: Iterable[Digest], needed: Collection[Set[Digest]]
    ) -> Collection[Digest]:
        """Divide held content into what is deleted and what stays; return the former's wrappers."""
        staying: list[Digest] = []
        wrappers: dict[Digest, Digest] = {}
        targets = plan.targets
        async for part in _parts(below):
            for digest, record in (await self._content.records(part)).items():
                is_needed = any(digest in some for some in needed)
                if is_needed or await self._is_held_elsewhere(record, targets):
                    staying.append(digest)
                    continue
                plan.content[digest] = disk_bytes(record.size)
                if _is_manifest(record):
                    plan.manifests.add(digest)
                    if (wrapper := wrapper_of(record.descriptor)) is not None:
                        wrappers[digest] = wrapper
        async for part in _parts(await self._below(staying)):
            for digest in part:
                plan.content.pop(digest, None)
                plan.manifests.discard(digest)
                wrappers.pop(digest, None)
        return wrappers.values()

    async def _choose_links_of_tags(self, plan: _Plan, listed: set[Digest]) -> None:
        """Choose the links to remove with the tags of a repository.

        These are links to content that is deleted, and to manifests that stay only for another
        repository: a link to these would keep them when that repository is dropped too.
        """
        for target, images in plan.by_target():
            others = await self._below(plan.others.get(target, ()))
            links = plan.links.setdefault(target, set())
            async for part in _parts(plan.below(images)):
                links.update(digest for digest in part if digest in plan.content)
                kept = {*part} - links - listed - others.keys()
                records = (await self._content.records(kept)).values()
                links.update(record.digest for record in records if _is_manifest(record))

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

    async def _carry_out(self, plan: _Plan) -> None:
        """Delete names first, then content, then links, image by image.

        An interrupted drop leaves later images complete. The links of the others remain, by which
        another drop of their repository finds the rest of their content.
        """
        uses: Counter[Digest] = Counter()
        for _, images in plan.by_target():
            seen: set[Digest] = set()
            async for part in _parts(plan.below(images)):
                new = {*part} - seen
                seen |= new
                uses.update(new)
        for target, images in plan.by_target():
            await self._drop_images(plan, target, list(images), uses)
        async for part in _parts(plan.content):
            plan.late += (digest for digest in part if digest not in uses)
        await self._delete(plan, plan.late)
        for target, digests in plan.links.items():
            async for part in _parts(digests):
                await self._unlink(target, part)
        await self._layout.publish_if_changed()
        await self._discard(list(plan.wrappers))  # last: until now index.json may have named them

    async def _drop_images(
        self, plan: _Plan, target: Target, images: list[_Image], uses: Counter[Digest]
    ) -> None:
        """Drop images of one repository in steps.

        What several images list goes with the last of them. ``uses`` counts the repositories whose
        images have yet to be dropped.
        """
        steps = [images[start : start + _STEP] for start in range(0, len(images), _STEP)]
        last: dict[Digest, int] = {}
        for number, step in enumerate(steps):
            last |= dict.fromkeys(plan.below(step), number)
            await asyncio.sleep(0)
        links = plan.links[target]
        for number, step in enumerate(steps):
            await asyncio.gather(*(self._content.tags.drop(target, one.tag) for one in step))
            ended = {one for one in plan.below(step) if last[one] == number}
            uses.subtract(ended)
            plan.late += await self._delete(plan, [one for one in ended if uses[one] <= 0])
            await self._unlink(target, ended & links)
            links -= ended

    async def _unlink(self, target: Target, digests: Collection[Digest]) -> None:
        await self._content.links.remove(target, digests)
        await self._forget(target, digests)

    async def _delete(self, plan: _Plan, digests: Collection[Digest]) -> list[Digest]:
        """Delete what the plan has of these, manifests first; return what manifests still list."""
        listed: list[Digest] = []
        async for part in _parts(digests):
            await self._discard([digest for digest in part if digest in plan.manifests])
        async for part in _parts(digests):
            # A manifest that was stored since the plan was made may list some of the rest.
            listings = await self._content.graph.listings(part)
            rest = [digest for digest in part if digest in plan.content]
            listed += (digest for digest in rest if listings[digest])
            await self._discard([digest for digest in rest if not listings[digest]])
        return listed

    async def _discard(self, digests: list[Digest]) -> None:
        for start in range(0, len(digests), _BATCH):
            await self._content.evictor.discard(digests[start : start + _BATCH])


async def _parts(items: Iterable[Item]) -> AsyncIterator[list[Item]]:
    """Yield some items at a time; other tasks run in between."""
    iterator = iter(items)
    while part := list(islice(iterator, _BATCH)):
        yield part
        await asyncio.sleep(0)


async def _events(plan: _Plan, selector: Selector) -> AsyncIterator[Event]:
    """Yield the events; content that several images share is counted with the first of them."""
    freed = sum(plan.content.values()) + sum(plan.wrappers.values())
    for refused in plan.refused:
        yield refused
    is_digest = selector.digest is not None and bool(plan.links) and not plan.images
    if is_digest and selector.digest is not None:
        yield _event(str(selector), selector.digest, freed)
    counted: set[Digest] = set()
    async for part in _parts(plan.images):
        for image in part:
            new = {*plan.below([image])} - counted
            counted |= new
            own = sum(plan.content.get(digest, 0) for digest in new)
            yield _event(f"{image.target}:{image.tag}", image.roots[0], own)
    yield {
        "event": "done",
        "images": len(plan.images) + is_digest,
        "refused": len(plan.refused),
        "blobs": len(plan.content) + len(plan.wrappers),
        "bytes": freed,
    }


def _is_manifest(record: BlobRecord) -> bool:
    return record.media_type is not None


def _event(name: str, digest: Digest, freed: int = 0, reason: str | None = None) -> Event:
    """Return the event of one image; ``reason`` is why it stays."""
    known = {"event": "image", "name": name, "digest": digest}
    return known | {"dropped": reason is None, "reason": reason, "bytes": freed}
