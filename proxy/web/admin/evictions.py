"""Tells what an eviction would take: the content, and the images that it belongs to."""

import asyncio
from collections.abc import AsyncGenerator
from typing import Final

from proxy.content.eviction import Evictor
from proxy.core.names import Digest
from proxy.core.records import BlobRecord, disk_bytes
from proxy.index import Index
from proxy.services.inventory import tree
from proxy.web.admin.documents import Document

_MOST_LINES: Final = 10_000
_SLICE: Final = 100


async def would_evict(index: Index, evictor: Evictor, wanted: int) -> AsyncGenerator[Document]:
    """Yield what an eviction of ``wanted`` disk bytes would take.

    First the content, coldest first, then the images that lose some of it, then the sum.
    """
    victims: dict[Digest, BlobRecord] = {}
    freed = 0
    for record in await evictor.coldest():
        if freed >= wanted:
            break
        victims[record.digest] = record
        freed += disk_bytes(record.size)
    for count, record in enumerate(victims.values()):
        if count < _MOST_LINES:
            yield {
                "digest": record.digest,
                "size": record.size,
                "disk_bytes": disk_bytes(record.size),
                "media_type": record.media_type,
                "last_used": record.used_at,
            }
    async for image in _images(index, victims):
        yield image
    yield {"blobs": len(victims), "bytes": freed}


async def _images(index: Index, victims: dict[Digest, BlobRecord]) -> AsyncGenerator[Document]:
    """Yield the images that lose content, and last, without a name, what belongs to none."""
    nameless = dict(victims)
    for count, (target, tag, record) in enumerate(index.tagged()):
        if count % _SLICE == 0:
            await asyncio.sleep(0)
        root = record.descriptor.digest
        lost = [victims[digest] for digest in tree(index, root) if digest in victims]
        if lost:
            yield _line(f"{target}:{tag}", "absent" if root in victims else "partial", lost)
        for one in lost:
            nameless.pop(one.digest, None)
    if nameless:
        yield _line(None, None, list(nameless.values()))


def _line(name: str | None, state: str | None, lost: list[BlobRecord]) -> Document:
    return {
        "image": name,
        "state": state,
        "blobs": len(lost),
        "bytes": sum(disk_bytes(record.size) for record in lost),
        "last_used": min(record.used_at for record in lost),
    }
