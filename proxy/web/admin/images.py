"""The held content of images, and the content that an eviction would delete, as documents."""

from collections.abc import AsyncGenerator, Collection
from typing import Final

from proxy.content.content import Content
from proxy.content.facts import TaggedImage
from proxy.core.errors import RegistryError
from proxy.core.names import Digest
from proxy.core.records import BlobRecord, disk_bytes
from proxy.core.selection import Selector
from proxy.repository.cool_downs import CoolDowns, Served
from proxy.services.inventory import Weight, weights
from proxy.web.admin.documents import Document

_MAX_LINES: Final = 10_000


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
        images = [one for one in batch if selector is None or _matches(selector, one)]
        served = [await _served(cool_downs, image) for image in images]
        weighed = await weights(content, (one.digest for one in served))
        held = await content.records(one.digest for one in served)
        for image, one in zip(images, served, strict=True):
            digests = {image.digest, one.digest}
            names = {image.name, *digests, *(f"{image.target}@{digest}" for digest in digests)}
            yield _described(image, one, weighed[one.digest], held.get(one.digest)) | {
                "pinned": not digests.isdisjoint(pinned),
                "in_use": not used.isdisjoint(names),
            }


def _matches(selector: Selector, image: TaggedImage) -> bool:
    return selector.matches(image.target, image.tag, image.digest)


async def _served(cool_downs: CoolDowns, image: TaggedImage) -> Served:
    """Return what a tag is served with, and the time until which it is held."""
    try:
        return await cool_downs.shown(image.target, image.tag, image.record)
    except RegistryError:  # its upstream has been removed, or fails
        return Served(image.digest)


def _described(
    image: TaggedImage, served: Served, weight: Weight, held: BlobRecord | None
) -> Document:
    document: Document = {}
    if served.held_until is not None:
        document["held_until"] = served.held_until
    if served.digest != image.digest:
        document["served"] = served.digest
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
    """Yield the effect of an eviction of this content.

    First the content, least recently used first, then the images that lose some of it, then totals.
    """
    victims = {record.digest: record for record in coldest}
    for record in list(victims.values())[:_MAX_LINES]:
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
    """Yield the images that lose content, and last, without a name, the rest of the content."""
    nameless = dict(victims)
    async for batch in content.tags.all():
        trees = content.graph.trees(image.digest for image in batch)
        below = {root: tree.keys() & victims.keys() async for root, tree in trees}
        for image in batch:
            lost = [victims[digest] for digest in below[image.digest]]
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
