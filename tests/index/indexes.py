"""Every index that there is, to be put through the contract; a new one is added to the list."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

from proxy.core.names import Digest, Repo, Tag, Target, sha256
from proxy.core.records import BlobRecord, Child, Descriptor, TagRecord
from proxy.index import Index
from proxy.index.memory import MemoryIndex
from proxy.index.sqlite import SqliteIndex
from tests.fakes.clock import Clock

NGINX = Target("docker.io", Repo("library/nginx"))
OTHER = Target("ghcr.io", Repo("org/other"))
LATEST = Tag("latest")
MANIFEST = "application/vnd.oci.image.manifest.v1+json"

Item = TypeVar("Item")


def digest(number: int) -> Digest:
    return sha256(str(number).encode())


def digests(*numbers: int) -> list[Digest]:
    return [digest(number) for number in numbers]


def tagged(number: int, at: float) -> TagRecord:
    return TagRecord(Descriptor("application/x", digest(number), number), at)


def blob(number: int, at: float = 1.0, size: int = 1) -> BlobRecord:
    return BlobRecord(digest(number), size, None, at)


def manifest(number: int, at: float = 1.0) -> BlobRecord:
    return BlobRecord(digest(number), 10, MANIFEST, at)


def listing(*numbers: int) -> tuple[Child, ...]:
    return tuple(Child(digest(number), 1) for number in numbers)


def entry(number: int, **more: object) -> dict[str, object]:
    return {"digest": digest(number), "size": 1, **more}


class Files(Protocol):
    """An index that can be closed and opened again with the same facts."""

    def __init__(self, path: Path, clock: Clock) -> None: ...
    async def open(self) -> Index: ...
    async def close(self) -> None: ...


class SqliteFiles:
    def __init__(self, path: Path, clock: Clock) -> None:
        self.path, self._clock = path, clock
        self._stack = AsyncExitStack()
        self.troubles = 0
        self._index: SqliteIndex | None = None

    def _trouble(self) -> None:
        self.troubles += 1

    async def open(self) -> SqliteIndex:
        await self.close()
        self._index = SqliteIndex(self.path, clock=self._clock, on_error=self._trouble)
        return await self._stack.enter_async_context(self._index)

    async def close(self) -> None:
        await self._stack.aclose()
        assert not self.troubles or (self._index is not None and self._index.damaged)
        self.troubles = 0


class MemoryFiles:
    def __init__(self, _: Path, clock: Clock) -> None:
        self._index = MemoryIndex(clock=clock)

    async def open(self) -> MemoryIndex:
        return self._index

    async def close(self) -> None:
        pass


FILES: Final[Mapping[str, type[Files]]] = {"sqlite": SqliteFiles, "memory": MemoryFiles}


async def everything(page: Callable[[Any], Any], key: Callable[[Any], Any]) -> list[Any]:
    """Return the items of all pages; `key` makes the next page's position of an item."""
    found: list[Any] = []
    after = None
    while items := await page(after):
        found += items
        after = key(items[-1])
    return found


async def order(index: Index, limit: int = 2) -> list[Digest]:
    """Return what is held, the coldest first, read in small pages."""
    rows = await everything(partial(index.coldest, limit=limit), lambda row: row[0])
    return [record.digest for _, record in rows]


async def all_tags(index: Index, limit: int = 2) -> list[tuple[Target, Tag, Digest]]:
    rows = await everything(partial(index.search, limit=limit), lambda row: row[:2])
    return [(row.target, row.tag, row.record.descriptor.digest) for row in rows]


async def opened(files: Files) -> AsyncIterator[Index]:
    """Yield the index, and the index of a later process."""
    yield await files.open()
    yield await files.open()
