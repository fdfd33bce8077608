"""Pins, images in use, and refreshed tags as documents, for the operator's pages and the API."""

from proxy.content.in_use import Feeds
from proxy.content.pin_names import Pin
from proxy.content.pins import Pins
from proxy.core.errors import Conflict, RequestInvalid, StorageError, StorageUnavailable
from proxy.core.names import Image
from proxy.repository import Cache
from proxy.web.admin.documents import Document


async def pins(kept: Pins) -> Document:
    """Return all pins and their images."""
    found = await kept.all()
    total = sum(pin.bytes for pin in found)
    return {"pins": [_pin(pin) for pin in found], "bytes": total, "limit_bytes": kept.limit()}


async def pin(kept: Pins, name: str) -> Document:
    """Add a pin. Raises ``RegistryError``."""
    try:
        return _pin(await kept.add(name))
    except StorageError as error:
        raise StorageUnavailable(f"the pin cannot be kept: {error}") from error


async def unpin(kept: Pins, name: str) -> Document:
    """Remove a pin. Raises ``RegistryError``."""
    try:
        removed = await kept.remove(name)
    except StorageError as error:
        raise StorageUnavailable(f"the pin cannot be removed: {error}") from error
    return {"pin": name, "removed": removed}


def in_use(feeds: Feeds) -> Document:
    """Return the images that are reported as in use, by source."""
    known = [
        {"source": feed.source, "images": feed.named, "expires_at": feed.expires_at}
        for feed in feeds.all()
    ]
    return {"feeds": known, "images": sorted({str(image) for image in feeds.images()})}


async def refresh(cache: Cache, image: Image) -> Document:
    """Ask upstream where a tag points. Raises ``RegistryError``."""
    if image.target is None or image.tag is None:
        raise RequestInvalid(f"{image}: a digest never changes; name a tag")
    if cache.manifests.is_offline(image.target):
        raise Conflict(f"{image}: its upstream is offline, so the tag cannot be checked")
    found = await cache.tags.refresh(image.target, image.tag)
    return {
        "image": str(image),
        "before": found.before,
        "digest": found.now,
        "changed": found.before != found.now,
        "recorded": found.is_recorded,
    }


def _pin(one: Pin) -> Document:
    return {
        "pin": one.name,
        "source": "configured" if one.is_configured else "added",
        "images": one.images,
        "bytes": one.bytes,
        "refused": one.refused,
    }
