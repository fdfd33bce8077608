"""The settings of ``warm``: images that are fetched on a schedule."""

from pydantic import Field, field_validator

from proxy.core.errors import NameInvalid
from proxy.core.platforms import is_platform
from proxy.core.selection import make_selector, split_tag
from proxy.settings.units import Section


def check_platforms(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return names of platforms. Raises ``ValueError`` for anything else but ``all`` alone."""
    if value == ("all",):
        return value
    for platform in value:
        if not is_platform(platform):
            raise ValueError(f"{platform!r} is no platform; write linux/amd64, or [all]")
    return value


def check_images(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return images and patterns. Raises ``ValueError`` for one that no image can match."""
    for image in value:
        try:
            make_selector(*split_tag(image.partition("@")[0]))
        except NameInvalid as error:
            raise ValueError(str(error)) from None
    return value


class Warm(Section):
    """Images to fetch completely on a schedule, before clients need them."""

    images: tuple[str, ...] = Field(min_length=1)
    """Images, or patterns over repository names and tags. A pattern selects what the registry
    lists, and what this cache knows."""
    platforms: tuple[str, ...] = ()
    """Platforms to fetch, such as `linux/amd64`. Empty: the platform of this machine. `all` stands
    for every platform."""
    schedule: str = "0 3 * * *"
    """When to fetch, in cron syntax (minute, hour, day of month, month, day of week) and the local
    time zone."""
    referrers: bool = True
    """Also fetch signatures, attestations, SBOMs and other referrers."""

    _check_platforms = field_validator("platforms")(check_platforms)
    _check_images = field_validator("images")(check_images)

    @field_validator("schedule")
    @classmethod
    def _check_schedule(cls, value: str) -> str:
        from datetime import datetime  # noqa: PLC0415 - only if something is scheduled

        from cronsim import CronSim, CronSimError  # noqa: PLC0415

        try:
            next(CronSim(value, datetime(2024, 1, 1)))
        except CronSimError as error:
            raise ValueError(f"{value!r} is not cron syntax ({error}); write 0 3 * * *") from None
        return value
