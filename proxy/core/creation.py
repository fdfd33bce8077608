"""The claimed creation time of an image (image-spec ``config.md``, ``annotations.md``)."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from proxy.core.manifests import read_descriptor
from proxy.core.names import Digest
from proxy.core.records import Descriptor
from proxy.core.tolerant_json import as_list, read_object

MAX_CHILDREN: Final = 8
"""Maximum number of images of an index whose times are read."""

_CREATED: Final = "org.opencontainers.image.created"


@dataclass(frozen=True, slots=True)
class Claim:
    """The creation time in a manifest, or the place where it is written.

    ``created`` is in Unix seconds. ``images`` are those of an index, without attestations.
    """

    created: float | None
    config: Descriptor | None
    images: tuple[Digest, ...]
    is_attached: bool


def read_claim(manifest: bytes) -> Claim:
    """Return the claim in a manifest."""
    document = read_object(manifest)
    annotations = document.get("annotations")
    noted = annotations.get(_CREATED) if isinstance(annotations, dict) else None
    images = [
        child.digest
        for entry in as_list(document.get("manifests"))
        if not _is_attestation(entry) and (child := read_descriptor(entry)) is not None
    ]
    return Claim(
        _seconds(noted),
        read_descriptor(document.get("config")),
        tuple(images[:MAX_CHILDREN]),
        isinstance(document.get("subject"), dict),
    )


def read_created(config: bytes) -> float | None:
    """Return ``created`` of an image's configuration, Unix seconds; None if it has none."""
    return _seconds(read_object(config).get("created"))


def _is_attestation(entry: object) -> bool:
    """Return True for what BuildKit lists beside the images, with the platform ``unknown``."""
    platform = entry.get("platform") if isinstance(entry, dict) else None
    return isinstance(platform, dict) and platform.get("os") == "unknown"


def _seconds(text: object) -> float | None:
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        if moment is None:
            return None
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return None
