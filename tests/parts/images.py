"""What an image is: media types, descriptors, and the records that tests compare with."""

import platform
from dataclasses import dataclass

HERE = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
ELSEWHERE = {"amd64": "arm64", "arm64": "amd64"}[HERE]


@dataclass(frozen=True, slots=True)
class Format:
    """One family of media types."""

    manifest: str
    index: str
    config: str
    layer: str


OCI = Format(
    manifest="application/vnd.oci.image.manifest.v1+json",
    index="application/vnd.oci.image.index.v1+json",
    config="application/vnd.oci.image.config.v1+json",
    layer="application/vnd.oci.image.layer.v1.tar+gzip",
)
DOCKER = Format(
    manifest="application/vnd.docker.distribution.manifest.v2+json",
    index="application/vnd.docker.distribution.manifest.list.v2+json",
    config="application/vnd.docker.container.image.v1+json",
    layer="application/vnd.docker.image.rootfs.diff.tar.gzip",
)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob as a manifest names it; `size` in bytes."""

    media_type: str
    digest: str
    size: int

    def json(self) -> dict[str, object]:
        """Return it as it stands in a manifest."""
        return {"mediaType": self.media_type, "size": self.size, "digest": self.digest}


@dataclass(frozen=True, slots=True)
class Named:
    """A manifest or index in a repository."""

    repository: str
    tag: str
    media_type: str
    digest: str
    size: int

    @property
    def by_tag(self) -> str:
        """The reference people type."""
        return f"{self.repository}:{self.tag}"

    @property
    def by_digest(self) -> str:
        """The reference that never changes."""
        return f"{self.repository}@{self.digest}"


@dataclass(frozen=True, slots=True)
class Image(Named):
    """An image for one platform; a member of an index carries the index's tag but has none."""

    architecture: str
    config: Descriptor
    layers: tuple[Descriptor, ...]

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """Config and layers."""
        return (self.config, *self.layers)

    @property
    def here(self) -> "Image":
        """The image a client on this machine runs."""
        return self


@dataclass(frozen=True, slots=True)
class Index(Named):
    """A multi-platform image."""

    images: tuple[Image, ...]

    @property
    def here(self) -> Image:
        """The image a client on this machine runs."""
        return next(image for image in self.images if image.architecture == HERE)

    @property
    def elsewhere(self) -> Image:
        """The image for the other platform."""
        return next(image for image in self.images if image.architecture == ELSEWHERE)
