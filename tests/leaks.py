"""What must be gone when all is over: tasks, descriptors, spool files."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from tests.running import Proxy, until

_STANDING = {
    "RequestHandler.start",  # one for each open connection of the proxy and of the fakes
    "Channel.receive",  # one for each worker; with its next report another one begins
}


def descriptors() -> dict[int, str]:
    """Return every open descriptor of this process and what it leads to."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        try:
            found[int(link.name)] = str(link.readlink())
        except FileNotFoundError:  # the listing's own
            continue
    return found


def opened(proxy: Proxy) -> list[str]:
    """Return which spool files and blobs are open, unlinked ones included."""
    content = tuple(f"{proxy.storage / name}/" for name in ("spool", "blobs"))
    found = [path for path in descriptors().values() if path.startswith(content)]
    return [path for path in found if not Path(path).is_dir()]


def opened_below(root: Path) -> list[str]:
    """Return which files and directories below a directory are open, unlinked ones included."""
    return [path for path in descriptors().values() if path.startswith(f"{root}/")]


def working() -> set[asyncio.Task[object]]:
    """Return the tasks that are neither the caller's own nor keep a connection or a worker."""
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    return {t for t in tasks if getattr(t.get_coro(), "__qualname__", "") not in _STANDING}


async def at_rest(proxy: Proxy, before: set[asyncio.Task[object]]) -> None:
    """Wait until a running proxy has no work left but what ran `before`; then nothing may lie about.

    What it holds by then is what its names say.
    """
    await _gone(lambda: working() - before, "tasks")
    await _gone(lambda: opened(proxy), "open content")
    assert not proxy.stats["downloads"]
    assert not proxy.spooled()
    assert_sound(proxy.storage)


def assert_sound(storage: Path) -> None:
    """Fail when a file in the store is not what its name says."""
    for path in (storage / "blobs").glob("*/*"):
        assert hashlib.new(path.parent.name, path.read_bytes()).hexdigest() == path.name


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Fail unless every task that began and every descriptor that was opened inside has ended."""
    tasks, files = asyncio.all_tasks(), _counted()
    yield
    known = tasks | {asyncio.current_task()}
    await _gone(lambda: asyncio.all_tasks() - known, "tasks")
    await _gone(lambda: _counted() - files, "descriptors")


def _counted() -> Counter[str]:
    """Return how many descriptors lead to what; a loop has other sockets in each of its runs."""
    return Counter(path.partition(":[")[0] for path in descriptors().values())


async def _gone(left: Callable[[], object], what: str) -> None:
    try:
        await until(lambda: not left())
    except TimeoutError:
        raise AssertionError(f"{what} left: {left()}") from None
