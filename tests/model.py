"""What may be held, and a simple model of what store, index, evictor and pins make of it."""

import json

from proxy.core import manifests
from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK, Descriptor, disk_bytes

AFTER = 1e-6
"""Seconds by which what a manifest lists counts as used after it."""

EPSILON = 5e-5


class Content:
    """Something to hold."""

    def __init__(self, name: str, body: bytes, media_type: str = "") -> None:
        self.name = name
        self.body = body
        self.media_type = media_type
        self.digest = sha256(body)
        self.children = manifests.read(body).listed or () if media_type else ()
        self.descriptor = Descriptor(media_type, self.digest, len(body))

    def __repr__(self) -> str:
        return self.name


def listing(name: str, key: str, media_type: str, listed: list[Content]) -> Content:
    entries = [
        {"mediaType": one.media_type, "digest": one.digest, "size": len(one.body)} for one in listed
    ]
    document = {"schemaVersion": 2, "mediaType": media_type, key: entries}
    return Content(name, json.dumps(document).encode(), media_type)


BLOBS = [
    Content(f"blob{number}", bytes([number]) * (number * BLOCK // 2 + number))
    for number in range(1, 9)
]
IMAGES = [  # neighbours share layers
    listing(f"image{first}", "layers", manifests.OCI_MANIFEST, BLOBS[first : first + 3])
    for first in range(6)
]
INDEXES = [
    listing(f"index{first}", "manifests", manifests.OCI_INDEX, IMAGES[first : first + 2])
    for first in (0, 1, 4)
]
ALL = [*BLOBS, *IMAGES, *INDEXES]
BY_DIGEST = {content.digest: content for content in ALL}


class Model:
    """What must be true."""

    def __init__(self) -> None:
        self.used: dict[Digest, float] = {}
        """What is held, and when it was last used."""
        self.rows: dict[Digest, float] = {}
        """The same as a crash would leave it."""
        self.unwritten: set[Digest] = set()
        self.unordered: set[Digest] = set()
        """What was spared by an eviction or found by a repair: it may be warmer than its use."""
        self.pins: list[Digest] = []
        self.missing: set[Digest] = set()
        self.corrupt: set[Digest] = set()

    def hold(self, content: Content, now: float) -> None:
        digest = content.digest
        for known in (self.missing, self.corrupt, self.unordered, self.unwritten):
            known.discard(digest)
        self.used[digest] = self.rows[digest] = now
        if content.children:
            self.use(digest, now)

    def use(self, digest: Digest, now: float) -> None:
        if digest in self.used:
            self.unwritten.add(digest)
            self._use(digest, now, set())

    def _use(self, digest: Digest, now: float, seen: set[Digest]) -> None:
        seen.add(digest)
        self.used[digest] = now
        self.unordered.discard(digest)
        for child in self.below(digest) - seen:
            self._use(child, now + AFTER, seen)

    def drop(self, digest: Digest) -> None:
        for known in (self.missing, self.corrupt, self.unordered, self.unwritten):
            known.discard(digest)
        self.used.pop(digest, None)
        self.rows.pop(digest, None)

    def below(self, digest: Digest) -> set[Digest]:
        return {c.digest for c in BY_DIGEST[digest].children if c.digest in self.used}

    def flush(self) -> None:
        self.rows = dict(self.used)
        self.unwritten.clear()

    def reopen(self, files: dict[Digest, float]) -> None:
        """Begin anew with the rows, and what lies there without a row."""
        self.used = dict(self.rows)
        self._age_together()
        for digest in list(self.missing):
            self.drop(digest)
        adopted = files.keys() - self.rows.keys() - self.corrupt
        self.rows |= {digest: files[digest] for digest in adopted}
        self.used |= {digest: files[digest] for digest in adopted}
        self._age_together()
        self.unwritten = {digest for digest in adopted if BY_DIGEST[digest].children}
        touched = {below for digest in adopted for below in self.tree(digest)}
        self.unordered = (self.unordered | touched) & self.used.keys()
        self.corrupt &= self.used.keys()

    def _age_together(self) -> None:
        for _ in range(3):
            for digest in self.used:
                for child in self.below(digest):
                    self.used[child] = max(self.used[child], self.used[digest] + AFTER)

    def tree(self, root: Digest) -> set[Digest]:
        found = {root}
        for child in BY_DIGEST[root].children:
            found |= self.tree(child.digest)
        return found

    def spared(self) -> set[Digest]:
        """Return what pins keep: nobody knows what a manifest lists that is not held."""
        found: set[Digest] = set()
        todo = [digest for digest in self.pins if digest in self.used]
        while todo:
            found.add(digest := todo.pop())
            todo += self.below(digest) - found
        return found

    def evicted(self, victims: set[Digest]) -> set[Digest]:
        """Check that these were the right ones to go; return what else might have gone."""
        spared = self.spared()
        assert not victims & spared, "something pinned was evicted"
        left = self.used.keys() - victims - spared
        warmest = max((self.used[digest] for digest in victims - self.unordered), default=0.0)
        for digest in left - self.unordered:
            assert self.used[digest] > warmest - EPSILON, "something colder was left"
        for digest in victims:
            self.drop(digest)
        self.unordered |= spared & self.used.keys()
        return left


def size_of(digest: Digest) -> int:
    return disk_bytes(len(BY_DIGEST[digest].body))
