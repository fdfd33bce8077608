"""The settings of ``watch``: tags that are checked on a schedule."""

from pydantic import field_validator, model_validator

from proxy.settings.units import Seconds, Section
from proxy.settings.warm import check_images, check_platforms


class Watch(Section):
    """Tags that Millpond checks regularly, so that it fetches new images before clients need them.

    A plain list is short for ``images``.
    """

    images: tuple[str, ...] = ()
    """Images, or patterns over repository names and tags. A pattern with a tag, such as
    `ghcr.io/acme/app:v*`, selects what the registry lists; one without a tag, such as
    `ghcr.io/acme/**`, the tags that this cache knows. `watch: [nginx]` is short for
    `watch: {images: [nginx]}`."""
    every: Seconds = 600.0
    """How often each tag is checked, by HEAD. The checks are spread over time."""
    platforms: tuple[str, ...] = ()
    """Platforms to fetch of a new image, such as `linux/amd64`; `all` stands for every platform.
    Empty: those of the previous image in the cache, else the platform of this machine."""
    referrers: bool = True
    """Also fetch signatures, attestations, SBOMs and other referrers of a new image."""

    _check_platforms = field_validator("platforms")(check_platforms)

    @model_validator(mode="before")
    @classmethod
    def _of_list(cls, value: object) -> object:
        return {"images": value} if isinstance(value, list | tuple) else value

    @field_validator("every")
    @classmethod
    def _check_every(cls, value: float) -> float:
        if not 1 <= value < float("inf"):
            raise ValueError("not an interval for checks; write 10m")
        return value

    @field_validator("images")
    @classmethod
    def _check_images(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for image in value:
            if "@" in image:
                raise ValueError(f"{image!r}: a digest never changes; name a tag")
        return check_images(value)
