"""What can be answered at once: held, linked, fresh, and in RAM. Nothing here waits or asks.

What is not at hand is not absent: the other rooms know more.
"""

from collections.abc import Coroutine
from typing import Any, NamedTuple, TypeVar

from proxy.core.names import Digest, Kind, Route, Tag, Target, is_digest
from proxy.core.records import Descriptor
from proxy.index import Index
from proxy.repository.manifests import Manifests
from proxy.repository.small_blobs import SmallBlobs
from proxy.repository.tags import Tags

Result = TypeVar("Result")


class Found(NamedTuple):
    """Content at hand. ``fresh``: for how many seconds a tag is answered without asking."""

    descriptor: Descriptor
    body: bytes
    fresh: float | None = None


class MemoryLookup:
    """Looks into the RAM of the other rooms."""

    def __init__(self, index: Index, manifests: Manifests, tags: Tags, small: SmallBlobs) -> None:
        self._index = index
        self._manifests = manifests
        self._tags = tags
        self._small = small

    def get(self, target: Target, route: Route) -> Found | None:
        """Return what a route leads to, and count the use; None when it is not at hand."""
        match route.kind:
            case Kind.MANIFEST if is_digest(route.ref):
                return self._manifest(target, Digest(route.ref), None)
            case Kind.MANIFEST:
                return self._tagged(target, Tag(route.ref))
            case Kind.BLOB:
                return self._blob(target, Digest(route.ref))
            case _:
                return None

    def _manifest(self, target: Target, digest: Digest, fresh: float | None) -> Found | None:
        manifest = self._manifests.in_ram(digest)
        if manifest is None or self._manifests.is_offline(target):
            return None
        if not self._is_held(target, digest):
            return None
        return Found(manifest.descriptor, manifest.body, fresh)

    def _tagged(self, target: Target, tag: Tag) -> Found | None:
        record = at_once(self._index.tag(target, tag))
        if record is None:
            return None
        fresh = self._tags.seconds_fresh(target, tag, record)
        if fresh is None:
            return None
        return self._manifest(target, record.descriptor.digest, fresh)

    def _blob(self, target: Target, digest: Digest) -> Found | None:
        small = self._small.in_ram(digest)
        if small is None or not self._is_held(target, digest):
            return None
        return Found(Descriptor("", digest, len(small.body)), small.body)

    def _is_held(self, target: Target, digest: Digest) -> bool:
        """Tell whether content is held under this name, and count its use if it is."""
        index = self._index
        if index.held(digest) is None or not at_once(index.linked(target, digest)):
            return False
        index.touch(digest)
        return True


def at_once(work: Coroutine[Any, Any, Result]) -> Result | None:
    """Return what ``work`` returns without waiting; None when it would wait, and it is given up.

    Only for questions: work that changes something must not be given up in its middle.
    """
    try:
        work.send(None)
    except StopIteration as done:
        result: Result = done.value
        return result
    work.close()
    return None
