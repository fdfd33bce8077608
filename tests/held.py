"""Store, index and evictor as one, without a network: for tests of what looks after them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from proxy.content.content import Content
from proxy.content.eviction import Evictor, Quota
from proxy.content.in_use import Feeds
from proxy.content.pins import Pins
from proxy.core.manifests import read
from proxy.core.names import Digest, Tag, Target, sha256
from proxy.core.records import BLOCK, Descriptor, TagRecord
from proxy.core.routing import Router
from proxy.index.sqlite import SqliteIndex
from proxy.runtime.metrics import CacheCounters
from proxy.settings import Settings
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskStore
from tests.fakes import content
from tests.fakes.clock import Clock

LIMIT = 100 * BLOCK
ROUTER = Router(
    Settings(upstreams={"docker.io": {}, "ghcr.io": {}, "lab:5000": {"url": "http://lab:5000"}})
)  # type: ignore[dict-item]


class Held:
    """A cache whose content is put there by hand."""

    def __init__(
        self, directory: Directory, index: SqliteIndex, clock: Clock, quota: Quota
    ) -> None:
        self.clock = clock
        self.root = directory.root
        self.store = DiskStore(directory)
        self.index = index
        self.shelf = directory
        self.counters = CacheCounters()
        self.protected: set[Digest] = set()
        self.evictor = Evictor(
            index, self.store, quota, counters=self.counters, protected=self._protected
        )
        self.content = Content(self.store, index, self.evictor, self.counters, clock)

    async def _protected(self) -> set[Digest]:
        return self.protected

    async def hold(self, data: bytes, media_type: str = "") -> Digest:
        """Hold a blob, or a manifest with what it lists."""
        digest = sha256(data)
        listing = read(data).listed if media_type else ()
        await self.content.store_manifest(Descriptor(media_type, digest, len(data)), data, listing)
        self.clock.advance(1)
        return digest

    async def blocks(self, number: int, blocks: int = 10) -> Digest:
        """Hold a blob of so many disk blocks, another one for every number."""
        return await self.hold(number.to_bytes(4) * (blocks * BLOCK // 4))

    async def image(self, name: str, thing: content.Content, *, but: tuple[str, ...] = ()) -> None:
        """Hold a whole image under a tag, except for the digests in ``but``."""
        for digest, manifest in thing.manifests.items():
            if digest not in but:
                await self.hold(manifest.manifest, manifest.media_type)
        for digest, data in thing.blobs.items():
            if digest not in but:
                await self.hold(data)
        target, tag = named(name)
        descriptor = Descriptor(thing.media_type, Digest(thing.digest), len(thing.manifest))
        await self.index.set_tag(target, tag, TagRecord(descriptor, self.clock()))
        await self.index.link(target, map(Digest, [*thing.manifests, *thing.blobs]))

    async def on_disk(self) -> set[str]:
        """Return the digests whose files are there."""
        return {digest async for batch in self.store.scan() for digest, _, _ in batch}

    def path(self, digest: str) -> Path:
        """Return where a blob's file lies."""
        algorithm, _, name = digest.partition(":")
        return self.root / "blobs" / algorithm / name

    def feeds(self, file: Path | None = None) -> Feeds:
        """Return what is told to be in use, beginning with nothing."""
        return Feeds(self.index, ROUTER.parse_image, self.clock, file)

    def pins(self, *configured: str, limit: int = LIMIT, feeds: Feeds | None = None) -> Pins:
        """Return pins of this cache; they are what its eviction spares."""
        told = self.feeds() if feeds is None else feeds
        return Pins(self.index, configured, parse=ROUTER.parse_pin, limit=lambda: limit, feeds=told)


def named(name: str) -> tuple[Target, Tag]:
    """Return what an image's name with a tag means."""
    image = ROUTER.parse_image(name)
    assert image.target is not None
    assert image.tag is not None
    return image.target, image.tag


async def nothing_elsewhere() -> list[str]:
    """Name no pins, as an ``index.json`` does that names none."""
    return []


@asynccontextmanager
async def opened(root: Path, clock: Clock, **quota: Any) -> AsyncIterator[Held]:
    """Open a cache; its evictor knows that nothing lies there unknown."""
    async with AsyncExitStack() as stack:
        held = await begun(stack, root, clock, **quota)
        held.evictor.set_orphans(0)
        yield held


async def begun(stack: AsyncExitStack, root: Path, clock: Clock, **quota: Any) -> Held:
    """Open a cache as at a start: its store has not been read yet."""
    directory = Directory(root)
    stack.callback(directory.close)
    index = SqliteIndex(root / "index", clock=clock, on_error=lambda: None)
    limits = Quota(**{"max_size": LIMIT} | quota)
    held = Held(directory, await stack.enter_async_context(index), clock, limits)
    await held.content.reconciler.begin()
    return held
