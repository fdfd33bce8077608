"""The held content of each image, by tag."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum

from proxy.content.content import Content
from proxy.core.manifests import INDEX_TYPES, MAX_WEIGHED_DEPTH, walk
from proxy.core.names import Digest
from proxy.core.records import disk_bytes


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
    """Return the weight of a manifest with its content; shared content counts once.

    Includes facts that could not be written.
    """
    return await _weigh(content, root, _Weighed(), 0)


async def weights(content: Content, roots: Iterable[Digest]) -> dict[Digest, Weight]:
    """Return the weights of many manifests, by one look at the index. Raises ``StorageError``."""
    wanted = set(roots)
    held = await content.graph.weights(wanted)
    found = dict.fromkeys(wanted, Weight(0, 1, State.ABSENT))
    for root, (held_bytes, missing) in held.items():
        found[root] = Weight(held_bytes, missing, State.PARTIAL if missing else State.WHOLE)
    return found


@dataclass(frozen=True, slots=True)
class _Weighed:
    """Weighed digests, and the missing pieces of a manifest at a depth.

    Nested manifests that list the same manifests have exponentially many paths.
    """

    digests: set[Digest] = field(default_factory=set)
    missing: dict[tuple[Digest, int], int] = field(default_factory=dict)


async def _weigh(content: Content, root: Digest, weighed: _Weighed, depth: int) -> Weight:
    if (known := weighed.missing.get((root, depth))) is not None:
        return Weight(0, known, State.PARTIAL if known else State.WHOLE)
    record = await content.record(root)
    if record is None:
        return Weight(0, 1, State.ABSENT)
    held = 0 if root in weighed.digests else disk_bytes(record.size)
    weighed.digests.add(root)
    below = await content.graph.children(root)
    if below is None or depth == MAX_WEIGHED_DEPTH:  # it is not known what a client needs besides
        return Weight(held, 1, State.PARTIAL)
    if record.media_type in INDEX_TYPES:
        parts = [await _weigh(content, digest, weighed, depth + 1) for digest in below]
        held += sum(part.held_bytes for part in parts)
        missing = min((part.missing for part in parts), default=0)
    else:
        blobs = await content.records(below)
        missing = sum(digest not in blobs for digest in below)
        held += sum(disk_bytes(one.size) for d, one in blobs.items() if d not in weighed.digests)
        weighed.digests.update(below)
    weighed.missing[root, depth] = missing
    return Weight(held, missing, State.PARTIAL if missing else State.WHOLE)


async def broken_by(content: Content, digest: Digest) -> list[str]:
    """Return the names of the images that need this content, sorted."""
    names: list[str] = []
    async for node in walk([digest], content.graph.parents):
        names += [image.name for image in await content.tags.pointing_to(node.digest)]
    return sorted(names)
