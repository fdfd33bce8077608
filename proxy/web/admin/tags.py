"""The present and past digests of tags."""

from collections.abc import Sequence

from proxy.content.content import Content
from proxy.core.errors import NameUnknown, RequestInvalid
from proxy.core.names import Image, Tag, Target
from proxy.core.policy import CacheDirective
from proxy.repository import Cache
from proxy.services.imports import Imported
from proxy.web.admin.documents import Document


async def history(
    content: Content, cache: Cache, image: Image, imported: Sequence[Imported]
) -> Document:
    """Return the digests that a tag pointed to, the latest last, with times in Unix seconds.

    ``imported`` are the imports that brought the image.

    Raises ``NameUnknown`` for a tag that this cache never saw.
    """
    target, tag = _tag(image)
    entries = await sightings(content, target, tag)
    record = await content.tags.get(target, tag)
    if not entries and record is None:
        raise NameUnknown(f"{image}: this cache has never seen it")
    until = None if record is None else await cache.tags.cool_downs.held_until(target, tag, record)
    return {
        "image": str(image),
        "digest": None if record is None else record.descriptor.digest,
        "held_until": until,
        "history": entries,
        "imported": [
            import_as_document(one) | {"digest": one.images[str(image)]} for one in imported
        ],
    }


async def sightings(content: Content, target: Target, tag: Tag) -> list[Document]:
    """Return the digests that a tag pointed to, the latest last, with times in Unix seconds."""
    return [
        {
            "digest": entry.digest,
            "first_seen": entry.first_seen or None,
            "last_seen": entry.last_seen or None,
            "held": await content.holds(entry.digest),
        }
        for entry in await content.tags.history(target, tag)
    ]


def import_as_document(one: Imported) -> Document:
    """Return the facts about an import, without its images."""
    return {
        "at": one.at,
        "source": one.source,
        "creator": one.creator,
        "created_at": one.created_at,
    }


async def resolved(cache: Cache, image: Image) -> Document:
    """Return the digest that a client gets for an image now, and why it may be outdated.

    Raises ``RegistryError``.
    """
    warning: str | None = None
    if image.tag is None and image.digest is not None:
        digest = image.digest
    else:
        found = await cache.tags.head(*_tag(image), CacheDirective.REVALIDATE)
        digest, warning = found.descriptor.digest, found.warning
    return {"image": str(image), "digest": digest, "warning": warning}


def _tag(image: Image) -> tuple[Target, Tag]:
    if image.target is None or image.tag is None:
        raise RequestInvalid(f"{image}: a digest never changes; name a tag")
    return image.target, image.tag
