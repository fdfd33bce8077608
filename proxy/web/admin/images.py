"""Images under ``/-/``: list, drop, refresh and pull them. Streams are NDJSON."""

from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass

from aiohttp.web import BaseRequest, StreamResponse

from proxy.content.content import Content
from proxy.content.in_use import Feeds
from proxy.content.pins import Pins
from proxy.content.tags import TaggedImage
from proxy.core.errors import Conflict, RequestInvalid
from proxy.core.names import Image
from proxy.core.selection import Selector
from proxy.repository import Cache
from proxy.services.drop import Dropper
from proxy.services.inventory import weigh
from proxy.services.pull import Platforms, Puller
from proxy.services.verify import Verifier
from proxy.web.admin.documents import Document, Page, asked, is_true, reply, stream


@dataclass(frozen=True, slots=True)
class Services:
    """The services that commands use, and the parsers of image names and selectors."""

    verifier: Verifier
    dropper: Dropper
    puller: Puller
    cache: Cache
    image: Callable[[str], Image]
    selector: Callable[[str], Selector]


class ImagePages:
    """The pages about images, by path and method."""

    def __init__(self, content: Content, pins: Pins, feeds: Feeds, services: Services) -> None:
        self._content = content
        self._pins = pins
        self._feeds = feeds
        self._services = services
        self.pages: dict[str, dict[str, Page]] = {
            "/-/images": {"GET": self._get_images, "DELETE": self._delete_images},
            "/-/refresh": {"POST": self._post_refresh},
            "/-/pull": {"POST": self._post_pull},
        }

    async def _get_images(self, request: BaseRequest) -> StreamResponse:
        match = request.query.get("match")
        selector = None if match is None else self._services.selector(match)
        return await stream(request, self._images(selector))

    async def _delete_images(self, request: BaseRequest) -> StreamResponse:
        selector, dropper = self._services.selector(asked(request, "match")), self._services.dropper
        act = dropper.foretell if is_true(request, "dry_run") else dropper.drop
        return await stream(request, act(selector))

    async def _post_refresh(self, request: BaseRequest) -> StreamResponse:
        image = self._services.image(asked(request, "image"))
        if image.target is None or image.tag is None:
            raise RequestInvalid(f"{image}: a digest never changes; name a tag")
        cache = self._services.cache
        if cache.manifests.is_offline(image.target):
            raise Conflict(f"{image}: this is offline; upstream is not asked")
        found = await cache.tags.refresh(image.target, image.tag)
        return reply(
            {
                "image": str(image),
                "before": found.before,
                "digest": found.now,
                "changed": found.before != found.now,
                "recorded": found.is_recorded,
            }
        )

    async def _post_pull(self, request: BaseRequest) -> StreamResponse:
        image = self._services.image(asked(request, "image"))
        named = request.query.get("platforms", "")
        platforms = Platforms(tuple(filter(None, named.split(","))))
        return await stream(request, self._services.puller.run(image, platforms))

    async def _images(self, selector: Selector | None) -> AsyncGenerator[Document]:
        pinned = await self._pins.pinned()
        used = {str(image) for image in self._feeds.images()}
        async for batch in self._content.tags.all():
            for image in batch:
                if selector is None or selector.matches(image.target, image.tag, image.digest):
                    by_digest = f"{image.target}@{image.digest}"
                    is_used = not used.isdisjoint({image.name, by_digest, image.digest})
                    marks = {"pinned": image.digest in pinned, "in_use": is_used}
                    yield await self._described(image) | marks

    async def _described(self, image: TaggedImage) -> Document:
        weight = await weigh(self._content, image.digest)
        return {
            "name": image.name,
            "digest": image.digest,
            "media_type": image.record.descriptor.media_type,
            "state": weight.state.value,
            "held_bytes": weight.held_bytes,
            "missing": weight.missing,
            "last_used": None if image.held is None else image.held.used_at,
            "checked_at": image.record.checked_at or None,
        }
