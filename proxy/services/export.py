"""Selects the content of a bundle: complete held images with their referrers."""

from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field, replace
from typing import Final

from proxy.content.content import Content
from proxy.content.facts import TaggedImage
from proxy.content.pins import Pins
from proxy.core.errors import RegistryError
from proxy.core.manifests import INDEX_TYPES, walk
from proxy.core.names import Digest, Tag, Target, parse_digest
from proxy.core.records import BlobRecord, Child, Descriptor, TagHistoryEntry, TagRecord
from proxy.core.selection import Selector
from proxy.repository.cool_downs import CoolDowns, Served
from proxy.repository.referrers import fallback_tag
from proxy.runtime.executors import in_thread_if_large
from proxy.services.bundle.contents import BundledBlob, BundledTag, Contents
from proxy.services.inventory import State, weigh
from proxy.services.pull import ATTACHED, Platforms

_MAX_DEPTH: Final = 8


@dataclass(frozen=True, slots=True)
class Selection:
    """The images for a bundle. ``since`` (Unix seconds): those whose tag has moved after that."""

    selectors: tuple[Selector, ...] = ()
    is_all: bool = False
    is_pinned: bool = False
    since: float | None = None
    platforms: Platforms = field(default_factory=lambda: Platforms(()))
    with_referrers: bool = True


@dataclass(slots=True)
class _Export:
    """The contents so far, and the problems of the selected images."""

    selection: Selection
    contents: Contents
    linked: dict[Target, dict[Digest, None]] = field(default_factory=dict)
    tags: dict[str, BundledTag] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class Exporter:
    """Lists the contents of bundles. ``creator`` is the program, for people."""

    def __init__(
        self, content: Content, cool_downs: CoolDowns, pins: Pins, *, source: str, creator: str
    ) -> None:
        self._content = content
        self._cool_downs = cool_downs
        self._pins = pins
        self._source = source
        self._creator = creator

    async def contents(self, selection: Selection) -> tuple[Contents, list[str]]:
        """Return the contents of a bundle of the selected images, and the problems."""
        now = self._content.clock()
        found = _Export(selection, Contents(self._source, self._creator, now))
        selectors = dict.fromkeys(selection.selectors)
        pinned: Collection[Digest] = ()
        if selection.is_pinned:
            pinned = await self._pins.pinned()
            selectors |= dict.fromkeys(self._pins.of_images())
            found.contents.pins = [pin.name for pin in await self._pins.all()]
        matched: set[Selector] = set()
        named = replace(selection, selectors=tuple(selectors))
        async for image in self._selected(named, pinned, matched):
            await self._add_tag(found, image)
        for selector in selectors:
            if selector not in matched and not await self._add_untagged(found, selector):
                found.problems.append(f"{selector}: no such image is in the cache")
        found.contents.tags = list(found.tags.values())
        found.contents.links = {target: [*held] for target, held in found.linked.items()}
        return found.contents, found.problems

    async def _selected(
        self, selection: Selection, pinned: Collection[Digest], matched: set[Selector]
    ) -> AsyncIterator[TaggedImage]:
        async for batch in self._content.tags.all():
            for image in batch:
                of = [s for s in selection.selectors if _matches(s, image)]
                matched.update(of)
                if not (of or selection.is_all or self._is_pinned(selection, pinned, image)):
                    continue
                if selection.since is None or await self._moved(image) >= selection.since:
                    yield image

    def _is_pinned(
        self, selection: Selection, pinned: Collection[Digest], image: TaggedImage
    ) -> bool:
        """Return True for a pinned image, also if the pin protects less than it names."""
        if not selection.is_pinned:
            return False
        pins = self._pins.pinning(image.target, image.tag, image.digest)
        return bool(pins) or image.digest in pinned

    async def _moved(self, image: TaggedImage) -> float:
        """Return when a tag was first seen with its present digest, in Unix seconds."""
        history = await self._content.tags.history(image.target, image.tag)
        return history[-1].first_seen if history else image.record.checked_at

    async def _add_tag(self, found: _Export, image: TaggedImage) -> None:
        if image.name in found.tags:
            return
        target, tag, record = image.target, image.tag, image.record
        history = await self._content.tags.history(target, tag)
        digest = (await self._served(image)).digest
        if not await self._add_tree(found, target, digest, image.name):
            return
        if digest != image.digest:
            record, history = await self._older(digest, record, history)
        found.tags[image.name] = BundledTag(target, tag, record, history)

    async def _served(self, image: TaggedImage) -> Served:
        """Return what clients get for a tag: an older image while the newest one is held back."""
        try:
            return await self._cool_downs.shown(image.target, image.tag, image.record)
        except RegistryError:  # its upstream has been removed, or fails
            return Served(image.digest)

    async def _older(
        self, digest: Digest, newest: TagRecord, history: tuple[TagHistoryEntry, ...]
    ) -> tuple[TagRecord, tuple[TagHistoryEntry, ...]]:
        """Return the record and the history of a tag as if it had not moved on from ``digest``."""
        held = await self._content.record(digest)
        assert held is not None
        past = tuple(history[: max(n for n, one in enumerate(history, 1) if one.digest == digest)])
        descriptor = Descriptor(held.media_type or "", digest, held.size)
        return replace(newest, descriptor=descriptor), past

    async def _add_untagged(self, found: _Export, selector: Selector) -> bool:
        """Add an image that is named by its digest and has no tag; return if there is one."""
        if selector.digest is None:
            return False
        holders = await self._content.links.holders(selector.digest)
        added = False
        for target in filter(selector.covers, holders):
            added |= await self._add_tree(found, target, selector.digest, str(selector))
        return added

    async def _add_tree(self, found: _Export, target: Target, root: Digest, name: str) -> bool:
        """Add a manifest with all that it lists; return False if it is not held itself."""
        missing: list[Digest] = []

        async def take(digest: Digest) -> list[Digest]:
            record = await self._servable(target, digest)
            if record is None:
                missing.append(digest)
                return []
            found.linked.setdefault(target, {})[digest] = None
            found.contents.blobs[digest] = BundledBlob(
                digest, record.size, record.media_type, record.is_public
            )
            if record.media_type is None:
                return []
            try:
                listed = await self._children(found, record, name)
            except RegistryError as error:
                found.problems.append(f"{name}: {error.message}")
                return []
            if found.selection.with_referrers:
                listed += await self._referrers(found, target, digest)
            return listed

        async for _ in walk([root], take, max_depth=_MAX_DEPTH):
            pass
        if missing:
            found.problems.append(
                f"{name}: incomplete, {len(missing):,} missing, first {missing[0]}; fetch it with: "
                f"millpond warm {name}"
            )
        return root not in missing

    async def _servable(self, target: Target, digest: Digest) -> BlobRecord | None:
        """Return the record of held content that a repository may serve."""
        record = await self._content.find(digest)
        if record is None or record.is_public or await self._content.links.has(target, digest):
            return record
        return None

    async def _children(self, found: _Export, record: BlobRecord, name: str) -> list[Digest]:
        """Return what a manifest lists; of an index, the wanted images.

        Without wanted platforms these are all complete images. Raises ``RegistryError``.
        """
        platforms = found.selection.platforms
        listed = await self._content.graph.children(record.digest) or ()
        if record.media_type not in INDEX_TYPES:
            return [*listed]
        if not platforms.wanted:
            weights = {one: await weigh(self._content, one) for one in listed}
            whole = [one for one, weight in weights.items() if weight.state is State.WHOLE]
            return whole or [*listed]
        body = await self._content.read(record.digest) or b""
        children = [Child(one, 0) for one in listed]
        chosen = await in_thread_if_large(len(body), lambda: platforms.choose(body, children))
        if chosen.problem is not None:
            found.problems.append(f"{name}: {chosen.problem}")
        return [child.digest for child in chosen.images]

    async def _referrers(self, found: _Export, target: Target, digest: Digest) -> list[Digest]:
        """Return held manifests that refer to one, and add the tags of cosign."""
        entries = await self._content.links.referrers(target, digest)
        digests = [parse_digest(str(entry["digest"])) for entry in entries]
        for suffix in ATTACHED:
            tag = Tag(f"{fallback_tag(digest)}.{suffix}")
            record = await self._content.tags.get(target, tag)
            if record is not None and await self._content.holds(record.descriptor.digest):
                digests.append(record.descriptor.digest)
                history = await self._content.tags.history(target, tag)
                found.tags[f"{target}:{tag}"] = BundledTag(target, tag, record, history)
        return digests


def _matches(selector: Selector, image: TaggedImage) -> bool:
    return selector.matches(image.target, image.tag, image.digest)
