"""`millpond stats` and `millpond top` beside a running server."""

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.command import Terminal, begun, beside, ended, on_terminal, refused, run
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

APP = content.image(1)


@pytest.fixture
async def pulled(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", APP, tags=["1.0"])
    proxy = await start()
    for _ in range(2):
        assert (await proxy.get("/v2/library/app/manifests/1.0")).status == 200
    await proxy.settled()
    return proxy


@pytest.fixture
def options(pulled: Proxy) -> tuple[str, ...]:
    return ("--storage", str(pulled.storage))


async def interrupted(terminal: Terminal) -> int | None:
    terminal.process.send_signal(signal.SIGINT)
    return await ended(terminal.process, 60)


async def test_stats_once(options: tuple[str, ...]) -> None:
    done = await beside("stats", *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert "hit ratio  50.0% of 2 requests" in done.stdout
    assert "docker.io" in done.stdout
    document = json.loads((await beside("stats", "--json", *options)).stdout)
    assert document["total"]["requests"] == 2


async def test_stats_are_watched_on_a_terminal(pulled: Proxy, options: tuple[str, ...]) -> None:
    async with on_terminal("stats", "--watch", *options) as terminal:
        await terminal.shows("50.0% of 2 requests")
        assert (await pulled.get("/v2/library/app/manifests/1.0")).status == 200
        await terminal.shows("66.7% of 3 requests")
        assert await interrupted(terminal) == 130
    assert "Traceback" not in terminal.written
    assert terminal.written.endswith("\x1b[?25h")  # the cursor is back


@pytest.fixture
async def watching(
    pulled: Proxy, options: tuple[str, ...]
) -> AsyncIterator[asyncio.subprocess.Process]:
    async with begun("stats", "--watch", *options) as process:
        yield process


async def test_stats_are_lines_in_a_pipe(
    pulled: Proxy, watching: asyncio.subprocess.Process
) -> None:
    assert watching.stdout is not None
    async with asyncio.timeout(60):
        lines = [(await watching.stdout.readline()).decode() for _ in range(2)]
    for line in lines:
        assert "2 requests, hit ratio 50.0%" in line
    watching.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(watching.wait(), 60) == 130


async def test_top(pulled: Proxy, options: tuple[str, ...]) -> None:
    done = await beside("top", *options)
    assert (done.returncode, done.stderr) == (0, "")
    _, row = done.stdout.splitlines()[:2]
    assert row.split()[:2] == ["docker.io/library/app:1.0", "2"]
    assert (await pulled.get(f"/v2/library/app/blobs/{APP.config}")).status == 200
    document = json.loads((await beside("top", "--by", "bytes", "--json", *options)).stdout)
    assert document["images"][0]["bytes"] > 0
    assert document["downloads"] == []


async def test_top_is_refreshed_on_a_terminal(pulled: Proxy, options: tuple[str, ...]) -> None:
    async with on_terminal("top", *options) as terminal:
        await terminal.shows("docker.io/library/app:1.0")
        assert (await pulled.get(f"/v2/library/app/manifests/{APP.digest}")).status == 200
        await terminal.shows("docker.io/library/app:1.0  3 ")
        assert await interrupted(terminal) == 130


@pytest.mark.parametrize("command", ["stats", "top", "events"])
def test_without_a_server_there_is_nothing_to_show(command: str, tmp_path: Path) -> None:
    refused(run(command, "--storage", str(tmp_path)), "no server")
