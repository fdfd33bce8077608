"""A proxy running in the test's own loop, behind a real socket, and a client of it."""

import asyncio
import io
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientSession
from multidict import CIMultiDictProxy

from proxy.app import App, running
from proxy.app.engine import Environment
from proxy.core.names import Repo, Tag, Target
from proxy.core.records import Clock, TagHistoryEntry
from proxy.runtime import logs
from proxy.settings import Settings
from proxy.upstream.guard import SYSTEM_NETWORK
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import WORKERS


@dataclass(frozen=True)
class Answer:
    status: int
    headers: CIMultiDictProxy[str]
    body: bytes


@dataclass
class Proxy:
    app: App
    client: ClientSession
    storage: Path
    log: io.StringIO
    close: Callable[[], Awaitable[None]]

    async def ask(self, method: str, path: str, **headers: str) -> Answer:
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        async with self.client.request(method, path, headers=sent) as response:
            return Answer(response.status, response.headers, await response.read())

    async def get(self, path: str, **headers: str) -> Answer:
        return await self.ask("GET", path, **headers)

    async def head(self, path: str, **headers: str) -> Answer:
        return await self.ask("HEAD", path, **headers)

    @property
    def stats(self) -> dict[str, Any]:
        return self.app.admin.stats()

    @property
    def numbers(self) -> dict[str, Any]:
        counted: dict[str, Any] = self.stats["upstreams"]["docker.io"]
        return counted

    async def settled(self) -> None:
        """Return once no download is in progress."""
        await until(lambda: not self.app.admin._statistics.in_progress())

    async def caught_up(self) -> None:
        """Return once requests that were sent before have been read, and begun to be answered."""
        for _ in range(20):
            await self.get("/v2/")

    async def history(self, upstream: str, repo: str, tag: str) -> tuple[TagHistoryEntry, ...]:
        return await self.app.content.tags.history(Target(upstream, Repo(repo)), Tag(tag))

    def held(self) -> set[str]:
        """The digests whose files lie in the store."""
        blobs = self.storage / "blobs"
        return {f"{path.parent.name}:{path.name}" for path in blobs.glob("*/*")}

    def spooled(self) -> list[Path]:
        return list((self.storage / "spool").iterdir())


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):  # of a machine that other tests keep busy
        while not condition():
            await asyncio.sleep(0.002)


Start = Callable[..., Awaitable[Proxy]]

QUIET_STORAGE = {
    "high_mark": 1.0,
    "low_mark": 1.0,
    "min_free": 0,
    "unproven_share": 1.0,
    "scrub_every": "forever",
}
"""Evicts only what must go, and all that must, so that a test can say what stays."""


@asynccontextmanager
async def started(
    upstream: FakeUpstream, storage: Path, clock: Clock, changes: dict[str, Any]
) -> AsyncIterator[Proxy]:
    network = changes.pop("network", SYSTEM_NETWORK)
    identifier, rules = changes.pop("identifier", None), changes.pop("rules", None)
    hub = {"url": upstream.url} | changes.pop("hub", {})
    document: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "workers": WORKERS,
        "storage": QUIET_STORAGE | {"path": str(storage), **changes.pop("storage", {})},
        "upstreams": {"docker.io": hub, **changes.pop("upstreams", {})},
        "shutdown_grace": "2s",
        "patience": {"retries": 0, "resumes": 0, "failures": 1_000_000, "cool_down": 0},
        "prefetch": {"blobs": 0},
        "log": {"level": "debug"},
        **changes,
    }
    log = io.StringIO()
    output = logs.configure("debug", "json", log)
    settings = Settings.model_validate(document)
    async with AsyncExitStack() as stack:
        app = await stack.enter_async_context(
            running(settings, output, Environment(clock, network, identifier, rules))
        )
        session = ClientSession(f"http://{app.address}", auto_decompress=False)
        client = await stack.enter_async_context(session)
        yield Proxy(app, client, storage, log, stack.aclose)
