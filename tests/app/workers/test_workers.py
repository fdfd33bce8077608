"""Worker processes: what they answer, what they leave to the main process, and that nobody notices."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, TCPConnector

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, started, until

IMAGE, OTHER = content.image(1, layers=(2048, 3_000_000)), content.image(2, layers=(2048,))
SMALL, LARGE = IMAGE.layers
MANIFEST = "/v2/library/app/manifests/latest"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])


Start = Callable[..., Awaitable[Proxy]]


@pytest.fixture
async def start(upstream: FakeUpstream, tmp_path: Path) -> AsyncIterator[Start]:
    """Start a proxy with two workers, which have no fake clock."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Proxy:
            changes = {"workers": 2, **settings}
            proxy = started(upstream, tmp_path / "cache", time.time, changes)  # type: ignore[arg-type]
            return await stack.enter_async_context(proxy)

        yield start


@pytest.fixture
async def proxy(start: Start) -> Proxy:
    return await start()


async def warm(proxy: Proxy) -> None:
    """Pull the image through every worker, until the main process holds it."""
    for path in (MANIFEST, *(f"/v2/library/app/blobs/{digest}" for digest in IMAGE.blobs)):
        assert (await proxy.get(path)).status == 200
    await proxy.settled()
    await until(lambda: {*IMAGE.blobs} <= proxy.held())


async def metric(proxy: Proxy, name: str) -> dict[str, float]:
    """The values of a metric by its labels, as of when the workers have reported."""
    await asyncio.sleep(0.6)  # two reports
    text = (await proxy.get("/metrics")).body.decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if line.startswith(name))
    return {labels.removeprefix(name): float(value) for labels, _, value in lines}


async def by_workers(proxy: Proxy, name: str) -> float:
    return sum((await metric(proxy, f"millpond_worker_{name}_total")).values())


async def test_hits_are_answered_by_workers_and_counted_once(proxy: Proxy) -> None:
    await warm(proxy)
    paths = [MANIFEST, f"/v2/library/app/blobs/{SMALL}", f"/v2/library/app/blobs/{LARGE}"]
    before, stats = await by_workers(proxy, "requests"), proxy.numbers
    for path in paths * 4:
        answer = await proxy.get(path)
        assert answer.status == 200
        assert answer.headers["Cache-Status"].startswith("Millpond; hit")
        assert answer.headers["Server"] == "millpond"
    assert await by_workers(proxy, "requests") - before == 12
    assert proxy.numbers["hits"] - stats["hits"] == 12
    sent = 4 * (len(IMAGE.manifest) + 2048 + 3_000_000)
    assert proxy.numbers["bytes_to_clients"] - stats["bytes_to_clients"] == sent
    lines = [json.loads(line) for line in proxy.log.getvalue().splitlines()]
    logged = [one for one in lines if one["event"] == "request" and one.get("kind")]
    assert len(logged) == 1 + len(IMAGE.blobs) + 12
    assert {one["client"] for one in logged} == {"127.0.0.1"}


