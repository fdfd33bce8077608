"""Why an image is kept, or when it may be evicted."""

import math
from typing import Final

from proxy.content.content import Content
from proxy.content.in_use import Feeds
from proxy.content.pin_names import Pin
from proxy.content.pins import Pins
from proxy.core.names import Digest, Image
from proxy.services.explain.facts import Keeping

_NO_DIGEST: Final = Digest("")


class KeepingExplainer:
    """Finds what protects an image from eviction, and when it was last used."""

    def __init__(self, content: Content, pins: Pins, feeds: Feeds) -> None:
        self._content = content
        self._pins = pins
        self._feeds = feeds

    async def keeping(self, image: Image, digest: Digest | None) -> Keeping:
        """Return why an image is kept; ``digest`` None if none is known."""
        evictor = self._content.evictor
        limit, quota = evictor.limit, evictor.quota
        record = None if digest is None else await self._content.record(digest)
        pins = await self.pinning(image, digest)
        refusals = [pin.refused for pin in pins if pin.refused is not None]
        last_used = None if record is None else record.used_at
        expires = math.inf if last_used is None else last_used + quota.max_age
        return Keeping(
            pinned_by=tuple(pin.name for pin in pins),
            pin_refused=next(iter(refusals), None),
            in_use_by=await self.using(image, digest),
            is_protected=record is not None and digest in await self._pins.protected(),
            last_used=last_used,
            oldest_use=await evictor.oldest_use(),
            expires_at=expires if math.isfinite(expires) else None,
            is_next=record is not None and await self._is_next(record.digest),
            used_bytes=evictor.used,
            evicts_above_bytes=int(limit * quota.high_mark),
            limit_bytes=limit,
        )

    async def pinning(self, image: Image, digest: Digest | None) -> list[Pin]:
        """Return the pins that name the image, or a tag that points to it."""
        names = {str(image)}
        if image.target is not None and image.tag is not None:
            names.update(self._pins.pinning(image.target, image.tag, digest or _NO_DIGEST))
        if digest is not None:
            names |= {digest, f"{image.target}@{digest}"}
            for one in await self._content.tags.pointing_to(digest):
                names.update(self._pins.pinning(one.target, one.tag, digest))
        return [pin for pin in await self._pins.all() if pin.name in names]

    async def using(self, image: Image, digest: Digest | None) -> tuple[str, ...]:
        """Return the sources that report the image as in use."""
        names = {str(image)}
        if digest is not None:
            tagged = await self._content.tags.pointing_to(digest)
            names |= {digest, f"{image.target}@{digest}", *(one.name for one in tagged)}
        return tuple(
            feed.source for feed in self._feeds.all() if not names.isdisjoint(map(str, feed.images))
        )

    async def _is_next(self, digest: Digest) -> bool:
        """Return True if the next eviction, from the high to the low mark, removes a manifest."""
        evictor = self._content.evictor
        limit, quota = evictor.limit, evictor.quota
        above = max(evictor.used, limit * quota.high_mark) - limit * quota.low_mark
        victims = await evictor.coldest(max(1, int(above)))
        return any(record.digest == digest for record in victims)
