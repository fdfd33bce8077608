"""What do ten open dashboards cost while clients pull?"""

import asyncio
import time

from aiohttp import ClientSession

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection, pull
from benchmarks.rows import Row, at_most
from benchmarks.upstream import ACCEPT
from tests.parts.process import workdir

_PEOPLE = 90  # at two streams each; the cost of ten would be lost in the noise of the pulls
_SECONDS = 20
_PULLS = 1000
_AGAIN = 20  # seconds until a page asks for its tables again
_LAYER = 64_000
_TOKEN = "the-token-of-a-benchmark-0123456789"
_API = "/-/api/v1"
_STREAMS = (f"{_API}/live", f"{_API}/events?kinds=cached,tag-moved,evicted,denied")
_TABLES = (
    f"{_API}/series?since={time.time() - 86400:.0f}&points=180",
    f"{_API}/top?by=pulls&limit=10",
)


def run(bench: Bench) -> list[Row]:
    """Return the share of a core, in percent, that ten open overviews of operators take."""
    image = bench.content.image(_LAYER)
    manifest = f"/v2/{image.repository}/manifests/{image.digest}"

    def turn() -> float:
        with workdir("dashboards") as folder:
            file = folder / "token"
            file.write_text(_TOKEN)
            file.chmod(0o600)
            with ours.millpond(bench.url, {"admin": {"token_file": str(file)}}) as server:
                for _ in range(20):
                    pull(server.url, manifest)
                watched = asyncio.run(_cpu(server, manifest, _PEOPLE))
                alone = asyncio.run(_cpu(server, manifest, 0))
        return (watched - alone) / _SECONDS / _PEOPLE * 10 * 100

    shares = bench.interleaved({"dashboards": turn})["dashboards"]
    work = "ten open dashboards while clients pull: share of a core"
    return [Row("dashboards_cpu", work, "%", shares, target=at_most(1))]


async def _cpu(server: ours.Ours, manifest: str, people: int) -> float:
    """Return the CPU seconds that the server takes for some pulls, with people who watch."""
    headers = {"Authorization": f"Bearer {_TOKEN}"}
    async with ClientSession(server.url, headers=headers, raise_for_status=True) as session:
        pages = [_follow(session, path) for path in _STREAMS * people]
        pages += [_ask(session, path) for path in _TABLES * people]
        tasks = [asyncio.ensure_future(page) for page in pages]
        await asyncio.sleep(3)  # until the pages are there
        before = cpu_seconds(server.pid)
        await asyncio.to_thread(_pulls, server.url, manifest)
        used = cpu_seconds(server.pid) - before
        assert not any(task.done() for task in tasks), "a page has ended"
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return used


def _pulls(url: str, manifest: str) -> None:
    """Pull so often in so many seconds, evenly."""
    start = time.monotonic()
    with Connection(url) as connection:
        for number in range(_PULLS):
            connection.get(manifest, **ACCEPT)
            time.sleep(max(0.0, start + number * _SECONDS / _PULLS - time.monotonic()))


async def _follow(session: ClientSession, path: str) -> None:
    async with session.get(path, timeout=None) as answer:
        async for _ in answer.content.iter_any():
            pass


async def _ask(session: ClientSession, path: str) -> None:
    while True:
        async with session.get(path) as answer:
            await answer.read()
        await asyncio.sleep(_AGAIN)
