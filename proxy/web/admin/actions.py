"""The operator's pages under ``/-/``: images, pins, images in use, eviction, verification.

Only for the operator: names are confidential, and most of it changes something. Streams are NDJSON.
"""

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Final

from aiohttp.web import BaseRequest, StreamResponse

from proxy.access.audit import AuditLog
from proxy.access.operator import AdminAccess
from proxy.content.content import Content
from proxy.content.in_use import MAX_FILE, Feeds
from proxy.content.pins import Pins
from proxy.core.errors import RequestInvalid, Unsupported
from proxy.core.names import Image
from proxy.core.records import BlobRecord
from proxy.core.selection import Selector
from proxy.core.units import parse_size
from proxy.repository import Cache
from proxy.services.drop import Dropper
from proxy.services.expansion import Expansion
from proxy.services.pull import Platforms, Puller, PullOptions
from proxy.services.verify import Verifier
from proxy.upstream.registry import Upstream
from proxy.web.admin import images, offline, protection, tags
from proxy.web.admin.bundles import Bundles
from proxy.web.admin.documents import Document, Page, is_true, read_body, reply, required, stream
from proxy.web.gate import Guards

if TYPE_CHECKING:
    from proxy.content.bucket_eviction import BucketEvictor  # it needs obstore

_DEFAULT_TTL: Final = 3600.0
_LONGEST_TTL: Final = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Services:
    """The services behind the commands, and the parsers of image names and selectors.

    ``guards`` decide who may pull what.
    ``replicas`` returns the state of every replica of the fleet, by address. ``bucket``
    evicts from the second tier, if there is one.
    """

    content: Content
    pins: Pins
    feeds: Feeds
    verifier: Verifier
    dropper: Dropper
    puller: Puller
    expansion: Expansion
    bundles: Bundles
    cache: Cache
    guards: Guards
    upstreams: Mapping[str, Upstream]
    image: Callable[[str], Image]
    selector: Callable[[str], Selector]
    replicas: Callable[[], Mapping[str, Document]]
    bucket: "BucketEvictor | None" = None
    on_switch: list[Callable[[Mapping[str, Upstream]], Awaitable[None]]] = field(
        default_factory=list
    )
    """Called after upstreams were taken offline, or online."""


class AdminActions:
    """The operator's pages. Each raises ``RegistryError`` for an invalid request."""

    def __init__(self, services: Services, access: AdminAccess, audit: AuditLog) -> None:
        self._services = services
        self.audit = audit
        self._content = services.content
        self._feeds = services.feeds
        self.pins = services.pins
        self.access = access
        self._pages: dict[str, dict[str, Page]] = {
            "/-/pins": {"GET": self._get_pins, "PUT": self._put_pin, "DELETE": self._delete_pin},
            "/-/fleet": {"GET": self._get_fleet},
            "/-/in-use": {"GET": self._get_in_use, "PUT": self._put_in_use},
            "/-/evict": {"GET": self._get_evict, "POST": self._post_evict},
            "/-/verify": {"POST": self._post_verify},
            "/-/images": {"GET": self._get_images, "DELETE": self._delete_images},
            "/-/refresh": {"POST": self._post_refresh},
            "/-/pull": {"POST": self._post_pull},
            "/-/offline": {"GET": self._get_offline, "POST": self._post_offline},
            "/-/history": {"GET": self._get_history},
            "/-/resolve": {"GET": self._get_resolve},
            "/-/expand": {"GET": self._get_expand},
            **services.bundles.pages,
        }

    def has(self, path: str) -> bool:
        """Return True if a path is one of these pages."""
        return path in self._pages

    async def answer(self, request: BaseRequest) -> StreamResponse:
        """Answer a request of the operator. Raises ``RegistryError``."""
        pages = self._pages[request.path]
        page = pages.get(request.method)
        if page is None:
            problem = f"{request.method} {request.path}: no such page, or another method"
            raise Unsupported(problem, allowed=pages)
        return await page(request)

    async def _get_pins(self, _: BaseRequest) -> StreamResponse:
        return reply(await protection.pins(self.pins))

    async def _put_pin(self, request: BaseRequest) -> StreamResponse:
        return reply(await protection.pin(self.pins, required(request, "pin")))

    async def _delete_pin(self, request: BaseRequest) -> StreamResponse:
        return reply(await protection.unpin(self.pins, required(request, "pin")))

    async def _get_fleet(self, _: BaseRequest) -> StreamResponse:
        replicas = sorted(self._services.replicas().items())
        return reply({"replicas": [{"address": one} | facts for one, facts in replicas]})

    async def _get_in_use(self, _: BaseRequest) -> StreamResponse:
        return reply(protection.in_use(self._feeds))

    async def _put_in_use(self, request: BaseRequest) -> StreamResponse:
        text = await _body(request)
        source = request.query.get("source", "default")
        ttl = _number(request.query.get("ttl"), _DEFAULT_TTL, _LONGEST_TTL)
        update = await self._feeds.report(source, text, ttl)
        return reply(
            {
                "source": source,
                "images": update.feed.named,
                "expires_at": update.feed.expires_at,
                "not_understood": update.not_understood,
            }
        )

    async def _get_evict(self, request: BaseRequest) -> StreamResponse:
        size, bucket = _size(request), self._bucket(request)
        if bucket is None:
            coldest = await self._content.evictor.coldest(size)
        else:
            victims = await bucket.coldest(size)
            coldest = [BlobRecord(one.digest, one.size, None, one.used_at) for one in victims]
        return await stream(request, images.would_evict(self._content, coldest))

    async def _post_evict(self, request: BaseRequest) -> StreamResponse:
        blobs, freed = await (self._bucket(request) or self._content.evictor).evict(_size(request))
        return reply({"blobs": blobs, "bytes": freed})

    def _bucket(self, request: BaseRequest) -> "BucketEvictor | None":
        """Return the bucket's eviction, None for the disk. Raises ``RequestInvalid``."""
        tier = request.query.get("tier", "disk")
        if tier not in ("disk", "bucket"):
            raise RequestInvalid("tier is disk or bucket")
        if tier == "bucket" and self._services.bucket is None:
            raise RequestInvalid("no bucket is configured")
        return self._services.bucket if tier == "bucket" else None

    async def _post_verify(self, request: BaseRequest) -> StreamResponse:
        events = self._services.verifier.run(
            repair=is_true(request, "repair"),
            rate=_bytes(request.query.get("rate", "0"), "rate"),
            restart=is_true(request, "restart"),
        )
        return await stream(request, events)

    async def _get_images(self, request: BaseRequest) -> StreamResponse:
        match = request.query.get("match")
        selector = None if match is None else self._services.selector(match)
        used = {str(image) for image in self._feeds.images()}
        pinned = await self.pins.pinned()
        cool_downs = self._services.cache.tags.cool_downs
        found = images.described(self._content, cool_downs, selector, pinned=pinned, used=used)
        return await stream(request, found)

    async def _delete_images(self, request: BaseRequest) -> StreamResponse:
        dropper = self._services.dropper
        selector = self._services.selector(required(request, "match"))
        act = dropper.preview if is_true(request, "dry_run") else dropper.drop
        return await stream(request, act(selector))

    async def _post_refresh(self, request: BaseRequest) -> StreamResponse:
        image = self._services.image(required(request, "image"))
        return reply(await protection.refresh(self._services.cache, image))

    async def _post_pull(self, request: BaseRequest) -> StreamResponse:
        image = self._services.image(required(request, "image"))
        named = request.query.get("platforms", "")
        wanted = PullOptions(
            Platforms(tuple(filter(None, named.split(",")))),
            with_referrers=is_true(request, "referrers"),
            is_dry=is_true(request, "dry_run"),
        )
        return await stream(request, self._services.puller.run(image, wanted))

    async def _get_offline(self, _: BaseRequest) -> StreamResponse:
        return reply(offline.shown(self._services.upstreams))

    async def _post_offline(self, request: BaseRequest) -> StreamResponse:
        upstreams, value = self._services.upstreams, required(request, "value")
        offline.switch(upstreams, request.query.get("upstream"), value)
        for call in self._services.on_switch:
            await call(upstreams)
        return reply(offline.shown(upstreams))

    async def _get_history(self, request: BaseRequest) -> StreamResponse:
        image = self._services.image(required(request, "image"))
        imported = await self._services.bundles.importer.imports.of(str(image))
        return reply(await tags.history(self._content, self._services.cache, image, imported))

    async def _get_resolve(self, request: BaseRequest) -> StreamResponse:
        image = self._services.image(required(request, "image"))
        return reply(await tags.resolved(self._services.cache, image))

    async def _get_expand(self, request: BaseRequest) -> StreamResponse:
        selector = self._services.selector(required(request, "match"))
        found = await self._services.expansion.images(selector)
        return reply(asdict(found))


async def _body(request: BaseRequest) -> str:
    try:
        return (await read_body(request, MAX_FILE)).decode()
    except UnicodeDecodeError:
        raise RequestInvalid("not UTF-8 text") from None


def _size(request: BaseRequest) -> int:
    return _bytes(required(request, "bytes"), "bytes")


def _bytes(text: str, name: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise RequestInvalid(f"{name}: {error}") from None


def _number(text: str | None, otherwise: float, most: float) -> float:
    try:
        number = otherwise if text is None else float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise RequestInvalid("ttl is a number of seconds")
    return min(max(1.0, number), most)
