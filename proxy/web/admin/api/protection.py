"""Pins, images in use, and checks of tags on request."""

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from proxy.web.admin import protection
from proxy.web.admin.actions import Services
from proxy.web.admin.api.routes import AnyRoute, Caller, Model, NoParams, Params, Route

Name = Annotated[str, Field(min_length=1, max_length=1024)]
ImageName = Annotated[Name, Field(description="A name with a tag or digest, as nginx:1.27.")]
PinName = Annotated[Name, Field(description="An image or a pattern.")]


class PinParams(Params):
    """One pin."""

    pin: PinName


class ImageParams(Params):
    """One image."""

    image: ImageName


class Pin(Model):
    """A pin and its images; ``refused`` is the reason why it protects fewer than it names."""

    pin: str
    source: str
    images: int
    bytes: int
    refused: str | None


class Pins(Model):
    """All pins, and the disk bytes that they protect."""

    pins: list[Pin]
    bytes: int
    limit_bytes: int


class Unpinned(Model):
    """The pins that were removed."""

    pin: str
    removed: list[str]


class Feed(Model):
    """One source of images in use, until ``expires_at`` (Unix seconds; null: no expiry)."""

    source: str
    images: int
    expires_at: float | None


class InUse(Model):
    """The images that sources report to be in use."""

    feeds: list[Feed]
    images: list[str]


class Refreshed(Model):
    """The digests of a tag before and after a check."""

    image: str
    before: str | None
    digest: str
    changed: bool
    recorded: bool


@dataclass(frozen=True, slots=True)
class ProtectionRoutes:
    """The routes of pins, images in use, and checks of tags."""

    services: Services

    @property
    def routes(self) -> list[AnyRoute]:
        """The routes of this group."""
        return [
            Route("GET", "pins", NoParams, Pins, self._pins, "List the pins."),
            Route("PUT", "pins", PinParams, Pin, self._pin, "Pin an image or a pattern."),
            Route("DELETE", "pins", PinParams, Unpinned, self._unpin, "Remove a pin."),
            Route("GET", "in-use", NoParams, InUse, self._in_use, "List the images in use."),
            Route(
                "POST",
                "refresh",
                ImageParams,
                Refreshed,
                self._refresh,
                "Check a tag now.",
            ),
        ]

    async def _pins(self, _: NoParams, __: Caller) -> Model:
        return Pins.model_validate(await protection.pins(self.services.pins))

    async def _pin(self, params: PinParams, _: Caller) -> Model:
        return Pin.model_validate(await protection.pin(self.services.pins, params.pin))

    async def _unpin(self, params: PinParams, _: Caller) -> Model:
        return Unpinned.model_validate(await protection.unpin(self.services.pins, params.pin))

    async def _in_use(self, _: NoParams, __: Caller) -> Model:
        return InUse.model_validate(protection.in_use(self.services.feeds))

    async def _refresh(self, params: ImageParams, _: Caller) -> Model:
        image = self.services.image(params.image)
        return Refreshed.model_validate(await protection.refresh(self.services.cache, image))
