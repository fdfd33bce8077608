"""The held content of each image, by tag."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum

from proxy.content.content import Content
from proxy.core.manifests import walk
from proxy.core.names import Digest


class State(Enum):
    """How complete an image is."""

    WHOLE = "whole"
    """A client can pull it without the registry; of an index, at least one of its images."""
    PARTIAL = "partial"
    """Its manifest is held, but not everything that it lists."""
    ABSENT = "absent"
    """Its manifest is not held."""


@dataclass(frozen=True, slots=True)
class Weight:
    """The held content of a manifest's tree: disk bytes, and the number of missing pieces."""

    held_bytes: int
    missing: int
    state: State


async def weigh(content: Content, root: Digest) -> Weight:
    """Return the weight of a manifest with its content. Raises ``StorageError``."""
    return (await weights(content, [root]))[root]


async def weights(content: Content, roots: Iterable[Digest]) -> dict[Digest, Weight]:
    """Return the weights of many manifests, by one look at the index; shared content counts once.

    Raises ``StorageError``.
    """
    wanted = set(roots)
    held = await content.graph.weights(wanted)
    found = dict.fromkeys(wanted, Weight(0, 1, State.ABSENT))
    for root, (held_bytes, missing) in held.items():
        found[root] = Weight(held_bytes, missing, State.PARTIAL if missing else State.WHOLE)
    return found


async def broken_by(content: Content, digest: Digest) -> list[str]:
    """Return the names of the images that need this content, sorted."""
    names: list[str] = []
    async for node in walk([digest], content.graph.parents):
        names += [image.name for image in await content.tags.pointing_to(node.digest)]
    return sorted(names)
