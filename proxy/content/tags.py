"""Where tags point and have pointed."""

import asyncio
from collections.abc import AsyncIterator
from itertools import islice
from typing import Final, NamedTuple

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, TagRecord
from proxy.index import Index

_BATCH: Final = 100


class TaggedImage(NamedTuple):
    """A tag. ``held`` is the record of the manifest that it points to, None if that is not held.

    ``is_linked``: its repository is known to hold that manifest. Else the tag is only a claim.
    """

    target: Target
    tag: Tag
    record: TagRecord
    held: BlobRecord | None
    is_linked: bool

    @property
    def digest(self) -> Digest:
        """The digest that the tag points to."""
        return self.record.descriptor.digest

    @property
    def name(self) -> str:
        """The image's name, as in a pin."""
        return f"{self.target}:{self.tag}"


class TagRecords:
    """The known tags of all repositories. The index documents the verbs that it answers itself."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self.get: Final = index.tag
        self.set: Final = index.set_tag
        self.drop: Final = index.drop_tag
        self.forget: Final = index.forget_tag
        self.history: Final = index.history
        self.of: Final = index.tags
        self.repositories: Final = index.repositories

    async def all(self) -> AsyncIterator[list[TaggedImage]]:
        """Yield all tags, sorted, in batches. Tags that change meanwhile are as of their batch."""
        await self._index.ready()
        tagged = self._index.tagged()
        while batch := list(islice(tagged, _BATCH)):
            found = [await self._image(target, tag) for target, tag, _ in batch]
            yield [image for image in found if image is not None]
            await asyncio.sleep(0)

    async def pointing_to(self, digest: Digest) -> list[TaggedImage]:
        """Return the tags that point to a manifest, sorted."""
        return [one async for batch in self.all() for one in batch if one.digest == digest]

    async def _image(self, target: Target, tag: Tag) -> TaggedImage | None:
        record = await self._index.tag(target, tag)
        if record is None:
            return None
        digest = record.descriptor.digest
        held, is_linked = await self._index.blob(digest), await self._index.linked(target, digest)
        return TaggedImage(target, tag, record, held, is_linked)
