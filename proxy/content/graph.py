"""What held manifests list, and which of them list a digest."""

import asyncio
from collections.abc import AsyncIterator, Collection
from itertools import islice
from typing import Final

from proxy.core.manifests import walk
from proxy.core.names import Digest, Target
from proxy.core.records import BlobRecord
from proxy.index import Index

_BATCH: Final = 250


class Graph:
    """The held manifests as a graph (OCI descriptors point from a manifest to its content)."""

    def __init__(self, index: Index) -> None:
        self._index = index

    async def children(self, digest: Digest) -> tuple[Digest, ...] | None:
        """Return what a held manifest lists; empty for a blob and for what is not held.

        None for a manifest whose list is not understood or not known yet.
        """
        if self._index.is_incomplete(digest):
            return None
        return tuple(child.digest for child in self._index.children(digest))

    async def listed(self, digest: Digest) -> tuple[Digest, ...]:
        """Return what a held manifest lists, as far as it is known; for ``manifests.walk``."""
        return await self.children(digest) or ()

    async def parents(self, digest: Digest) -> list[Digest]:
        """Return the held manifests that list this. Costs a look at all of them."""
        return self._index.parents(digest)

    async def is_listed(self, digest: Digest) -> bool:
        """Return True if a held manifest lists this."""
        return self._index.is_listed(digest)

    async def tree(self, *roots: Digest) -> list[Digest]:
        """Return manifests and all that they list, held or not, a manifest before its content."""
        return [node.digest async for node in walk(roots, self.listed)]

    async def listed_besides(self, digests: Collection[Digest]) -> set[Digest]:
        """Return those of ``digests`` that are also listed by a held manifest not among them."""
        listed: set[Digest] = set()
        for count, manifest in enumerate(self._index.manifests()):
            if count % _BATCH == 0:
                await asyncio.sleep(0)
            if manifest not in digests:
                children = self._index.children(manifest)
                listed.update(child.digest for child in children if child.digest in digests)
        return listed

    async def untagged(self) -> AsyncIterator[list[tuple[Target, BlobRecord]]]:
        """Yield in batches the held manifests that no tag and no held manifest names.

        Each with a repository that holds it; without one it is left out.
        """
        tagged: set[Digest] = set()
        for target, _, pointed in self._index.tagged():
            digest = pointed.descriptor.digest
            if await self._index.linked(target, digest):
                tagged.add(digest)
        manifests = self._index.manifests()
        while batch := list(islice(manifests, _BATCH)):
            found = []
            for digest in batch:
                record = self._index.held(digest)
                if record is None or digest in tagged or self._index.is_listed(digest):
                    continue
                found += [(one, record) for one in (await self._index.holders(digest))[:1]]
            yield found
            await asyncio.sleep(0)
