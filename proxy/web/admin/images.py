"""What is held of each image, and what an eviction would delete: one document a line."""

from collections.abc import AsyncGenerator, Collection
from typing import Final

from proxy.content.content import Content
from proxy.content.facts import TaggedImage
from proxy.core.errors import RegistryError
from proxy.core.names import Digest
from proxy.core.records import BlobRecord, disk_bytes
from proxy.core.selection import Selector
from proxy.repository.cool_downs import CoolDowns, Served
from proxy.services.inventory import weigh
from proxy.web.admin.documents import Document

_MOST_LINES: Final = 10_000


async def described(
    content: Content,
    cool_downs: CoolDowns,
    selector: Selector | None,
    *,
    pinned: Collection[Digest],
    used: set[str],
) -> AsyncGenerator[Document]:
    """Yield the selected images; ``used`` names the images in use."""
    async for batch in content.tags.all():
        for image in batch:
            if selector is None or selector.matches(image.target, image.tag, image.digest):
                served = await _served(cool_downs, image)
                digests = {image.digest, served.digest}
                names = {image.name, *digests, *(f"{image.target}@{one}" for one in digests)}
                yield await _described(content, image, served) | {
                    "pinned": not digests.isdisjoint(pinned),
                    "in_use": not used.isdisjoint(names),
                }


async def _served(cool_downs: CoolDowns, image: TaggedImage) -> Served:
    """Return what a tag is served with, and until when it does not follow upstream."""
    try:
        return await cool_downs.shown(image.target, image.tag, image.record)
    except RegistryError:  # its upstream has been removed, or fails
        return Served(image.digest)


async def _described(content: Content, image: TaggedImage, served: Served) -> Document:
    weight = await weigh(content, served.digest)
    held = image.held
    document: Document = {}
    if served.held_until is not None:
        document["held_until"] = served.held_until
    if served.digest != image.digest:
        document["served"] = served.digest
        held = await content.record(served.digest)
    return document | {
        "name": image.name,
        "digest": image.digest,
        "media_type": image.record.descriptor.media_type,
        "state": weight.state.value,
        "held_bytes": weight.held_bytes,
        "missing": weight.missing,
        "last_used": None if held is None else held.used_at,
        "checked_at": image.record.checked_at or None,
    }


async def would_evict(content: Content, coldest: list[BlobRecord]) -> AsyncGenerator[Document]:
    """Yield what an eviction of this content would delete.

    First the content, coldest first, then the images that lose some of it, then the sum.
    """
    victims = {record.digest: record for record in coldest}
    for record in list(victims.values())[:_MOST_LINES]:
        yield {
            "digest": record.digest,
            "size": record.size,
            "disk_bytes": disk_bytes(record.size),
            "media_type": record.media_type,
            "last_used": record.used_at,
        }
    async for image in _losers(content, victims):
        yield image
    freed = sum(disk_bytes(record.size) for record in victims.values())
    yield {"blobs": len(victims), "bytes": freed}


async def _losers(content: Content, victims: dict[Digest, BlobRecord]) -> AsyncGenerator[Document]:
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
