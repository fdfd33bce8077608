"""The parameters and results of the readers of files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True)
class FoundReference:
    """An image that a file names, and the platform in the file (None: unspecified)."""

    name: str
    platform: str | None = None


@dataclass(slots=True)
class FoundReferences:
    """Images in the order of the file, each once, and problems with their places."""

    images: dict[FoundReference, None] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, name: str, platform: str | None = None) -> None:
        """Add an image."""
        self.images.setdefault(FoundReference(name, platform))

    def include(self, other: Self) -> None:
        """Add the images and problems of another file."""
        self.images.update(other.images)
        self.problems += (one for one in other.problems if one not in self.problems)


@dataclass(frozen=True, slots=True)
class Build:
    """The parameters that determine the images of a build.

    ``arguments`` are the values of ``--build-arg``, ``variables`` those of the environment, which
    Compose files use. Platforms are as ``linux/arm64/v8``; ``target`` is the one of the build.
    ``folder`` is that of the Compose file; None forbids reading other files.
    """

    machine: str
    target: str
    arguments: Mapping[str, str] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    folder: Path | None = None
