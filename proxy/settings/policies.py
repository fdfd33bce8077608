"""The settings of ``policies``: which images may run."""

from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator

from proxy.core.errors import NameInvalid
from proxy.core.manifests import is_media_type
from proxy.core.platforms import is_platform
from proxy.core.selection import make_selector
from proxy.settings.units import Bytes, Section

_CONDITIONS: Final = (
    *("require", "deny", "deny_digests_file", "max_image_size", "platforms", "media_types"),
)


class Cosign(Section):
    """Signatures of cosign by key."""

    keys: tuple[Path, ...] = Field(min_length=1)
    """PEM files of public keys (ECDSA P-256 or P-384, RSA, Ed25519). A signature by any of them
    suffices. A changed file is read again."""


class Require(Section):
    """What an image must have."""

    cosign: Cosign


class Policy(Section):
    """Conditions for images. An image must meet all policies that cover its repository."""

    name: Annotated[str, Field(min_length=1, max_length=100)] | None = None
    """Name of the policy in errors, logs and metrics. Default: its number in the list."""
    images: tuple[str, ...] = Field(default=("**",), min_length=1)
    """Patterns over repository names with their registry: `*` within one component, `**` across."""
    except_: tuple[str, ...] = Field(default=(), alias="except")
    """Patterns of repositories that the policy does not cover."""
    require: Require | None = None
    deny: bool = False
    """Deny these images completely."""
    deny_digests_file: Path | None = None
    """File of denied digests, one per line; `#` begins a comment. A changed file is read again."""
    max_image_size: Bytes | None = None
    """Maximum size of an image, as its manifests state it; of the largest platform for an index."""
    platforms: tuple[str, ...] = ()
    """Allowed platforms, such as `linux/amd64` or `linux/arm64/v8`. Empty: all."""
    media_types: tuple[str, ...] = ()
    """Allowed media types of configurations and artifacts. Empty: all."""
    because: Annotated[str, Field(max_length=500)] | None = None
    """Reason that clients see when the policy denies an image."""
    audit: bool = False
    """Log and count what the policy would deny, and deny nothing."""

    @field_validator("images", "except_")
    @classmethod
    def _check_patterns(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in value:
            if "@" in pattern or ":" in pattern.rpartition("/")[2]:
                raise ValueError(f"{pattern!r}: policies cover repositories; leave the tag out")
            try:
                make_selector(pattern)
            except NameInvalid as error:
                raise ValueError(str(error)) from None
        return value

    @field_validator("platforms")
    @classmethod
    def _check_platforms(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for platform in value:
            if not is_platform(platform):
                raise ValueError(f"{platform!r} is no platform; write linux/amd64")
        return value

    @field_validator("media_types")
    @classmethod
    def _check_media_types(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for media_type in value:
            if not is_media_type(media_type):
                raise ValueError(
                    f"{media_type!r} is no media type; "
                    "write application/vnd.oci.image.config.v1+json"
                )
        return value

    @model_validator(mode="after")
    def _check_conditions(self) -> Self:
        if not any(getattr(self, condition) for condition in _CONDITIONS):
            raise ValueError(f"a policy has at least one of {', '.join(_CONDITIONS)}")
        return self
