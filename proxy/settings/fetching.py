"""Settings for parallel downloads, prefetching, and caches in memory."""

from typing import Annotated, ClassVar

from pydantic import Field

from proxy.settings.units import Bytes, Section, Wait


class Parallel(Section):
    """Downloads of one large blob over several connections."""

    old_names: ClassVar[dict[str, str]] = {"start_from": "min_blob_size"}

    connections: Annotated[int, Field(ge=1, le=16)] = 4
    """Maximum number of connections for one large blob. More than one is used only if the registry
    supports ranges and one connection is slow. `1` disables it."""
    min_blob_size: Bytes = 32 * 1024**2
    """Minimum size of a blob that is fetched over several connections."""


class Prefetch(Section):
    """Blobs of an image that are fetched before the client requests them."""

    old_names: ClassVar[dict[str, str]] = {"at_once": "concurrency", "give_up": "idle_timeout"}

    blobs: Annotated[int, Field(ge=0)] = 40
    """When Millpond fetches an image manifest, it also fetches up to this many blobs of the image.
    `0` disables it."""
    max_bytes: Bytes = 1024**3
    """Maximum number of bytes to prefetch for one image."""
    concurrency: Annotated[int, Field(ge=1)] = 10
    """Maximum number of concurrent prefetches, for all images together."""
    idle_timeout: Wait = 5.0
    """Stop prefetching if the client requests no layer within this time."""


class Memory(Section):
    """Caches in memory."""

    manifests: Bytes = 64 * 1024**2
    """Memory for cached manifests."""
    blobs: Bytes = 64 * 1024**2
    """Memory for cached small blobs, such as the configurations of images."""
    largest_blob: Bytes = 128 * 1024
    """Maximum size of a blob that is kept in memory."""
