"""What held manifests list, and which of them list a digest."""

from collections.abc import AsyncIterator, Set
from typing import Final

from proxy.core.manifests import walk
from proxy.core.names import Digest, Target
from proxy.core.records import BlobRecord
from proxy.index import Index, pages

_BATCH: Final = 250


class Graph:
    """The held manifests as a graph (OCI descriptors point from a manifest to its content)."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.parents: Final = index.parents

    async def children(self, digest: Digest) -> tuple[Digest, ...] | None:
        """Return what a held manifest lists; empty for a blob and for what is not held.

        None for a manifest whose list is not understood or not known yet.
        """
        listed = await self._index.children(digest)
        return None if listed is None else tuple(child.digest for child in listed)

    async def listed(self, digest: Digest) -> tuple[Digest, ...]:
        """Return what a held manifest lists, as far as it is known; for ``manifests.walk``."""
        return await self.children(digest) or ()

    async def is_listed(self, digest: Digest) -> bool:
        """Return True if a held manifest lists this."""
        return bool(await self.parents(digest))

    async def tree(self, *roots: Digest) -> list[Digest]:
        """Return manifests and all that they list, held or not, a manifest before its content."""
        return [node.digest async for node in walk(roots, self.listed)]

    async def listed_besides(self, digests: Set[Digest]) -> set[Digest]:
        """Return those of ``digests`` that are also listed by a held manifest not among them."""
        return {one for one in digests if not digests >= set(await self.parents(one))}

    async def untagged(self) -> AsyncIterator[list[tuple[Target, BlobRecord]]]:
        """Yield in batches the held manifests that no tag and no held manifest names.

        Each with a repository that holds it; without one it is left out.
        """
        async for page in pages(self._index.untagged, lambda row: row[1].digest, _BATCH):
            yield page
