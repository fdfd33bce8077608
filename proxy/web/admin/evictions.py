"""Returns what an eviction would delete: the content, and the images that lose some of it."""

from collections.abc import AsyncGenerator, Collection
from typing import Final

from proxy.content.content import Content
from proxy.core.names import Digest
from proxy.core.records import BlobRecord, disk_bytes
from proxy.web.admin.documents import Document

_MOST_LINES: Final = 10_000


async def would_evict(content: Content, wanted: int) -> AsyncGenerator[Document]:
    """Yield what an eviction of ``wanted`` disk bytes would delete.

    First the content, coldest first, then the images that lose some of it, then the sum.
    """
    victims = {record.digest: record for record in await content.would_evict(wanted)}
    for record in list(victims.values())[:_MOST_LINES]:
        yield {
            "digest": record.digest,
            "size": record.size,
            "disk_bytes": disk_bytes(record.size),
            "media_type": record.media_type,
            "last_used": record.used_at,
        }
    async for image in _images(content, victims):
        yield image
    freed = sum(disk_bytes(record.size) for record in victims.values())
    yield {"blobs": len(victims), "bytes": freed}


async def _images(content: Content, victims: dict[Digest, BlobRecord]) -> AsyncGenerator[Document]:
    """Yield the images that lose content, and last, without a name, what belongs to none."""
    nameless = dict(victims)
    async for batch in content.tags.all():
        for image in batch:
            tree = await content.graph.tree(image.digest)
            lost = [victims[digest] for digest in tree if digest in victims]
            if lost:
                state = "absent" if image.digest in victims else "partial"
                yield _line(image.name, state, lost)
            for one in lost:
                nameless.pop(one.digest, None)
    if nameless:
        yield _line(None, None, nameless.values())


def _line(name: str | None, state: str | None, lost: Collection[BlobRecord]) -> Document:
    return {
        "image": name,
        "state": state,
        "blobs": len(lost),
        "bytes": sum(disk_bytes(record.size) for record in lost),
        "last_used": min(record.used_at for record in lost),
    }
