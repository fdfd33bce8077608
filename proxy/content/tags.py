"""Where tags point and have pointed."""

from collections.abc import AsyncIterator
from functools import partial
from typing import Final

from proxy.core.names import Digest
from proxy.index import Index, TaggedImage, pages

__all__ = ["TagRecords", "TaggedImage"]

_BATCH: Final = 250


class TagRecords:
    """The known tags of all repositories. The index documents the verbs that it answers itself."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.get: Final = index.tag
        self.set: Final = index.set_tag
        self.forget: Final = index.forget_tag
        self.history: Final = index.history
        self.of: Final = index.tags
        self.repositories: Final = index.repositories

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
