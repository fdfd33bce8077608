"""What is held of each image, by the tags that name it."""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum

from proxy.core.manifests import INDEX_TYPES
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import TagRecord, disk_bytes
from proxy.index import Index


class State(Enum):
    """How much of an image is held."""

    WHOLE = "whole"
    """A client could pull it from here; of an index, at least one of its images."""
    PARTIAL = "partial"
    """Its manifest is held, and not all that this lists."""
    ABSENT = "absent"
    """Not even its manifest is held."""


@dataclass(frozen=True, slots=True)
class Weight:
    """What is held of a manifest's tree: disk bytes, and how many pieces are missing."""

    held_bytes: int
    missing: int
    state: State


@dataclass(frozen=True, slots=True)
class HeldImage:
    """A tag and what is held of the image that it points to; ``used_at`` in Unix seconds."""

    target: Target
    tag: Tag
    record: TagRecord
    weight: Weight
    used_at: float | None

    @property
    def name(self) -> str:
        """The image's name as a pin would have it."""
        return f"{self.target}:{self.tag}"


def images(index: Index) -> Iterator[HeldImage]:
    """Iterate over all known tags, sorted by name; may change meanwhile."""
    for target, tag, _ in index.tagged():
        record = index.pointed(target, tag)
        if record is not None:
            digest = record.descriptor.digest
            held = index.held(digest)
            used_at = None if held is None else held.used_at
            yield HeldImage(target, tag, record, weigh(index, digest), used_at)


def tree(index: Index, root: Digest) -> list[Digest]:
    """Return a manifest and all that it lists, held or not, each manifest before its content."""
    found = {root: None}
    todo = [root]
    while todo:
        for child in index.children(todo.pop()):
            if child.digest not in found:
                found[child.digest] = None
                todo.append(child.digest)
    return list(found)


def weigh(index: Index, root: Digest) -> Weight:
    """Return what is held of a manifest and all that it lists; what is shared weighs once."""
    return _weigh(index, root, set())


def _weigh(index: Index, root: Digest, weighed: set[Digest]) -> Weight:
    record = index.held(root)
    if record is None:
        return Weight(0, 1, State.ABSENT)
    if index.is_incomplete(root):
        return Weight(disk_bytes(record.size) if root not in weighed else 0, 1, State.PARTIAL)
    held, missing = disk_bytes(record.size) if root not in weighed else 0, 0
    weighed.add(root)
    below = [child.digest for child in index.children(root)]
    if record.media_type in INDEX_TYPES:
        parts = [_weigh(index, digest, weighed) for digest in below if digest != root]
        held += sum(part.held_bytes for part in parts)
        if all(part.state is not State.WHOLE for part in parts) and parts:
            missing = min(part.missing for part in parts)
    else:
        for digest in below:
            blob = index.held(digest)
            missing += blob is None
            held += 0 if blob is None or digest in weighed else disk_bytes(blob.size)
            weighed.add(digest)
    return Weight(held, missing, State.PARTIAL if missing else State.WHOLE)


def broken_by(index: Index, digest: Digest) -> list[str]:
    """Return the names of the images that cannot be whole without this. Looks at all of them."""
    above = {digest}
    todo = [digest]
    while todo:
        for parent in index.parents(todo.pop()):
            if parent not in above:
                above.add(parent)
                todo.append(parent)
    return sorted(
        f"{target}:{tag}"
        for target, tag, record in index.tagged()
        if record.descriptor.digest in above
    )
