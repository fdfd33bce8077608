"""Facts of the index about content: tags, links of repositories, and the graph of manifests.

Verbs of the index are documented there.
"""

from collections.abc import AsyncIterator, Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Final

from proxy.core.manifests import walk
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, ImageSet, TagHistoryEntry, TagRecord
from proxy.index import Index, TaggedImage, Tree, pages

if TYPE_CHECKING:
    from proxy.content.notices import Moved

__all__ = ["Graph", "Links", "TaggedImage", "Tags", "Tree"]

_BATCH: Final = 250


class Tags:
    """The known tags of all repositories, and their history."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.get: Final = index.tag
        self.peek: Final = index.peek_tag
        self.restore: Final = index.set_tag
        self.forget: Final = index.forget_tag
        self.history: Final = index.history
        self.of: Final = index.tags
        self.repositories: Final = index.repositories
        self.on_moved: Final[list[Moved]] = []
        """Called when a tag has moved; not for restored records."""
        self.on_dropped: Final[list[Callable[[Target, Tag], None]]] = []
        """Called with each tag that is dropped here."""
        self.on_history: Final[list[Callable[[], None]]] = []
        """Called when histories were merged with those of others."""

    async def add_history(
        self, target: Target, tag: Tag, entries: Iterable[TagHistoryEntry]
    ) -> None:
        """Merge the history of a tag in another cache into that here."""
        await self._index.add_history(target, tag, entries)
        self._report_history()

    async def set(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        """Set the record of a tag; None: it was deleted."""
        before = await self.get(target, tag)
        # Nothing is awaited between here and the change of the record in memory.
        if record is not None:
            self._report_move(target, tag, before, record)
        await self.restore(target, tag, record)

    async def add_images(self, images: ImageSet) -> None:
        """Record images in one step: all or, if that fails, none. Raises ``StorageError``."""
        before = {image: await self.get(*image) for image in images.tags}
        await self._index.add_images(images)
        self._report_history()
        for image, record in images.tags.items():
            self._report_move(*image, before[image], record)

    async def drop(self, target: Target, tag: Tag) -> None:
        """Forget a tag and its history, here and wherever else its record is shared."""
        await self.forget(target, tag)
        for dropped in self.on_dropped:
            dropped(target, tag)

    async def all(self, digest: Digest | None = None) -> AsyncIterator[list[TaggedImage]]:
        """Yield all tags, or those that point to ``digest``, sorted, in batches.

        Tags that change meanwhile are as of their batch.
        """
        search = partial(self._index.search, digest=digest)
        async for page in pages(search, lambda image: (image.target, image.tag), _BATCH):
            yield page

    async def pointing_to(self, digest: Digest) -> list[TaggedImage]:
        """Return the tags that point to a manifest, sorted."""
        return [one async for batch in self.all(digest) for one in batch]

    def _report_move(
        self, target: Target, tag: Tag, before: TagRecord | None, record: TagRecord
    ) -> None:
        former, now = None if before is None else before.descriptor.digest, record.descriptor.digest
        if now != former:
            for moved in self.on_moved:
                moved(target, tag, former, now)

    def _report_history(self) -> None:
        for listener in self.on_history:
            listener()


class Links:
    """The repositories that contain a digest upstream, and its referrers there.

    Only these repositories may serve it from here.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._presumed: set[tuple[Target, Digest]] = set()
        self.is_confirmed: Final = index.linked
        self.add: Final = index.link
        self.remove: Final = index.unlink
        self.holders: Final = index.holders
        self.of: Final = index.linked_to
        self.referrers: Final = index.referrers
        self.add_referrer: Final = index.add_referrer

    async def has(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository may serve content without a request to upstream."""
        return (target, digest) in self._presumed or await self.is_confirmed(target, digest)

    async def add_public(self, target: Target, digests: Iterable[Digest]) -> None:
        """Record links from a repository to the held public content among these.

        Every client can get public content, so a claim in a manifest is enough to link it.
        """
        records = await self._index.records(digests)
        await self.add(target, [one.digest for one in records.values() if one.is_public])

    def presume(self, target: Target, digests: Iterable[Digest]) -> None:
        """Allow a repository to serve these until the process ends, without a record."""
        self._presumed.update((target, digest) for digest in digests)


class Graph:
    """The held manifests as a graph (OCI descriptors point from a manifest to its content)."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.parents: Final = index.parents
        self.described: Final = index.children
        self.weights: Final = index.weights
        self.listings: Final = index.listings
        self.listed_by_others: Final = index.listed_by_others

    async def children(self, digest: Digest) -> tuple[Digest, ...] | None:
        """Return the children of a held manifest; empty for other content.

        None for a manifest whose list is not understood or not known yet.
        """
        listed = await self._index.children(digest)
        return None if listed is None else tuple(child.digest for child in listed)

    async def listed(self, digest: Digest) -> tuple[Digest, ...]:
        """Return the known children of a held manifest, for ``manifests.walk``."""
        return await self.children(digest) or ()

    async def is_listed(self, digest: Digest) -> bool:
        """Return True if a held manifest lists this."""
        return bool(await self.parents(digest))

    async def tree(self, *roots: Digest) -> list[Digest]:
        """Return manifests and their content, held or not, a manifest before its content."""
        return [node.digest async for node in walk(roots, self.listed)]

    async def trees(self, roots: Iterable[Digest]) -> AsyncIterator[tuple[Digest, Tree]]:
        """Yield many manifests in their order, each with its tree."""
        todo = list(roots)
        for start in range(0, len(todo), _BATCH):
            trees = await self._index.trees(some := todo[start : start + _BATCH])
            for root in some:
                yield root, trees[root]

    async def untagged(self) -> AsyncIterator[list[tuple[Target, BlobRecord]]]:
        """Yield in batches the held manifests that no tag and no held manifest names.

        Each with a repository that holds it; without one it is left out.
        """
        async for page in pages(self._index.untagged, lambda row: row[1].digest, _BATCH):
            yield page
