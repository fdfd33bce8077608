"""Every index that there is, to be put through the contract; a new one is added to the list."""

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path
from typing import Final

from proxy.core.names import Digest, Repo, Tag, Target, sha256
from proxy.core.records import Descriptor, TagRecord
from proxy.index import Index
from proxy.index.local import LocalIndex
from tests.fakes.clock import Clock

Backend = Callable[[Path, Clock, Callable[[], None]], AbstractAsyncContextManager[Index]]
"""Opens an index whose files lie at a path; it calls back for trouble that it survives."""

NGINX = Target("docker.io", Repo("library/nginx"))
OTHER = Target("ghcr.io", Repo("org/other"))
LATEST = Tag("latest")


def digest(number: int) -> Digest:
    return sha256(str(number).encode())


def record(number: int, at: float) -> TagRecord:
    return TagRecord(Descriptor("application/x", digest(number), number), at)


def local(path: Path, clock: Clock, on_trouble: Callable[[], None]) -> LocalIndex:
    return LocalIndex(path, clock=clock, on_trouble=on_trouble)


BACKENDS: Final[Mapping[str, Backend]] = {"local": local}


class Reopening:
    """An index that can be closed and opened again on the same files."""

    def __init__(self, backend: Backend, path: Path, clock: Clock) -> None:
        self._backend = backend
        self._path = path
        self._clock = clock
        self._stack = AsyncExitStack()
        self.troubles = 0

    def _trouble(self) -> None:
        self.troubles += 1

    async def open(self) -> Index:
        await self.close()
        index = self._backend(self._path, self._clock, self._trouble)
        return await self._stack.enter_async_context(index)

    async def close(self) -> None:
        await self._stack.aclose()
        assert not self.troubles
