"""The images that tags name: searched, sorted, and one in detail."""

import base64
import json
import math
from collections.abc import Collection
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

from pydantic import Field

from proxy.core.errors import NameUnknown, RequestInvalid
from proxy.core.names import Digest, Image, Target
from proxy.services import image_details
from proxy.services.explain.keeping import KeepingExplainer
from proxy.services.image_search import Entry, ImageSearch, Position, Sort
from proxy.services.inventory import Weight, weigh, weights
from proxy.services.popularity import Popularity
from proxy.web.admin import tags
from proxy.web.admin.actions import Services
from proxy.web.admin.api.protection import ImageName
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, Params, Route

_WRONG_CURSOR: Final = "cursor: not the next of an earlier answer"


class ImagesParams(Params):
    """The selection, order and number of images."""

    q: Annotated[str, Field(max_length=300, description="Part of the name.")] = ""
    sort: Sort = Sort.NAME
    limit: Annotated[int, Field(ge=1, le=500)] = 50
    cursor: Annotated[str | None, Field(max_length=1000, description="The last answer's next.")] = (
        None
    )


class NameParams(Params):
    """One image."""

    name: ImageName


class ListedImage(Model):
    """An image; ``state`` is whole, partial or absent."""

    name: str
    digest: str
    state: str
    held_bytes: int
    last_used: float | None
    checked_at: float | None
    pinned: bool
    in_use: bool
    pulls: int


class ImageList(Model):
    """Images, and the cursor of the next ones."""

    images: list[ListedImage]
    next: str | None


class Layer(Model):
    """A layer; ``shared_with`` is how many other held manifests list it."""

    digest: str
    size: int
    held: bool
    shared_with: int


class PlatformImage(Model):
    """The image for one platform; ``size`` is null if its manifest is not held."""

    platform: str
    digest: str
    held_bytes: int
    size: int | None
    layers: list[Layer]


class Referrer(Model):
    """A manifest that refers to the image."""

    digest: str
    artifact_type: str | None
    held: bool


class Sighting(Model):
    """A past or present digest of the tag, with times."""

    digest: str
    first_seen: float | None
    last_seen: float | None
    held: bool


class ImageDetails(Model):
    """One image, with its held content."""

    name: str
    digest: str
    media_type: str | None
    state: str
    held_bytes: int
    last_used: float | None
    checked_at: float | None
    fresh_until: float | None
    pulls: int
    pinned_by: list[str]
    in_use_by: list[str]
    history: list[Sighting]
    platforms: list[PlatformImage]
    referrers: list[Referrer]


@dataclass(frozen=True, slots=True)
class Images:
    """The images."""

    services: Services
    image_search: ImageSearch
    popularity: Popularity

    @property
    def routes(self) -> list[AnyRoute]:
        """The routes of this group."""
        return [
            Route("GET", "images", ImagesParams, ImageList, self._images, "Search the images."),
            Route("GET", "image", NameParams, ImageDetails, self._image, "Show an image."),
        ]

    async def _images(self, params: ImagesParams, _: Caller) -> Model:
        if params.sort is Sort.PULLS:
            await self.popularity.fold()
        after = None if params.cursor is None else _position(params.cursor)
        page = await self.image_search.page(params.q, params.sort, params.limit, after)
        pinned = await self.services.pins.pinned()
        used = {str(image) for image in self.services.feeds.images()}
        weighed = await weights(self.services.content, (entry.digest for entry in page.entries))
        images = [self._listed(one, weighed[one.digest], pinned, used) for one in page.entries]
        following = page.following
        return ImageList(images=images, next=None if following is None else _cursor(following))

    def _listed(
        self, entry: Entry, weight: Weight, pinned: Collection[Digest], used: set[str]
    ) -> ListedImage:
        names = {entry.name, f"{entry.target}@{entry.digest}", entry.digest}
        return ListedImage(
            name=entry.name,
            digest=entry.digest,
            state=weight.state.value,
            held_bytes=weight.held_bytes,
            last_used=entry.used_at,
            checked_at=entry.checked_at or None,
            pinned=entry.digest in pinned,
            in_use=not used.isdisjoint(names),
            pulls=self.popularity.pulls(entry.name),
        )

    async def _image(self, params: NameParams, _: Caller) -> Model:
        image = self.services.image(params.name)
        if image.target is None:
            raise RequestInvalid(f"{image}: name the repository too, as nginx@{image.digest}")
        content, target = self.services.content, image.target
        tagged = await self._tagged(target, image)
        digest = image.digest or tagged.get("digest")
        record = None if digest is None else await content.record(digest)
        is_there = image.tag is not None or (
            record is not None and await content.links.has(target, record.digest)
        )
        if digest is None or not is_there:
            raise NameUnknown(f"{image}: it is not in this cache")
        weight = await weigh(content, digest)
        explainer = KeepingExplainer(content, self.services.pins, self.services.feeds)
        await self.popularity.fold()
        return ImageDetails.model_validate(
            {
                "name": str(image),
                "media_type": None if record is None else record.media_type,
                "state": weight.state.value,
                "held_bytes": weight.held_bytes,
                "last_used": None if record is None else record.used_at,
                "checked_at": None,
                "fresh_until": None,
                "history": [],
                "pulls": self.popularity.pulls(str(image)),
                **tagged,
                "digest": digest,
                "pinned_by": [pin.name for pin in await explainer.pinning(image, digest)],
                "in_use_by": await explainer.using(image, digest),
                "platforms": [
                    asdict(one) for one in await image_details.platforms(content, digest)
                ],
                "referrers": [
                    asdict(one) for one in await image_details.referrers(content, target, digest)
                ],
            }
        )

    async def _tagged(self, target: Target, image: Image) -> dict[str, Any]:
        """Return the facts about a tag; none for a digest."""
        if image.tag is None:
            return {}
        content, cache = self.services.content, self.services.cache
        history = await tags.sightings(content, target, image.tag)
        record = await content.tags.get(target, image.tag)
        if record is None:
            return {"history": history, "digest": history[-1]["digest"] if history else None}
        seconds = cache.tags.seconds_fresh(target, image.tag, record)
        until = None if seconds is None else content.clock() + seconds
        return {
            "digest": record.descriptor.digest,
            "media_type": record.descriptor.media_type,
            "checked_at": record.checked_at or None,
            "fresh_until": until if until is not None and until < 1e12 else None,
            "history": history,
        }


def _cursor(position: Position) -> str:
    return base64.urlsafe_b64encode(json.dumps(position).encode()).decode()


def _position(cursor: str) -> Position:
    """Return where a page ended. Raises ``RequestInvalid``."""
    try:
        value, name = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        position = float(value), str(name)
    except (ValueError, TypeError, OverflowError, RecursionError):
        raise RequestInvalid(_WRONG_CURSOR) from None
    if not math.isfinite(position[0]):
        raise RequestInvalid(_WRONG_CURSOR)
    return position
