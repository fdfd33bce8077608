"""A manifest that is kept in RAM, and what it takes there."""

from typing import Final, NamedTuple

from proxy.core.manifests import Children
from proxy.core.records import Child, Descriptor
from proxy.repository.results import Manifest

_EACH: Final = 2048
_EACH_CHILD: Final = 300
"""Bytes that the objects for a manifest, and for each that it lists, take in RAM."""


class KeptManifest(NamedTuple):
    """A manifest in RAM. ``stored``: it lay on the disk as well, and goes when that goes."""

    hit: Manifest
    stored: bool

    @property
    def descriptor(self) -> Descriptor:
        """Its type, digest and size in bytes."""
        return self.hit.descriptor

    @property
    def body(self) -> bytes:
        """The bytes as upstream sent them."""
        return self.hit.body

    @property
    def children(self) -> Children | None:
        """What it lists; None when that is not known."""
        return self.hit.children

    @property
    def listed(self) -> tuple[Child, ...] | None:
        """All that it lists, each once; None when that is not known."""
        return None if self.children is None else self.children.listed

    @property
    def ram_bytes(self) -> int:
        """What this takes in RAM: its body, and objects for itself and for what it lists."""
        below = 0 if self.children is None else sum(map(len, self.children))
        return len(self.body) + _EACH + _EACH_CHILD * below
