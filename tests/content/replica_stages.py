"""Replicas as sources, for the contract in `test_sources.py`."""

import asyncio
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from proxy.app.fleet import ContentExchange
from proxy.core.errors import UpstreamUnavailable
from proxy.core.names import Digest, Target
from proxy.core.sources import Body, Piece, Priority, Source
from proxy.fleet import connecting, small_blobs, sources
from proxy.fleet.small_blobs import SmallBlobs
from tests.content.stages import DATA, IMAGE, LAYER, OTHERS, SIZE, Confirmed, Stage
from tests.fakes import faults
from tests.fakes.clock import Clock
from tests.fakes.layout import blob_file
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import asked
from tests.fleet.together import acquainted, fleet, starting
from tests.parts import redis
from tests.running import Proxy, until

HALF = SIZE // 6
"""Bytes that have arrived at the other replica when it is asked; fewer than any break."""


class Holder(Stage):
    """A replica that holds the blob."""

    def __init__(self, source: Source, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.source = source
        self.file = file
        self._monkeypatch = monkeypatch

    def break_at(self, offset: int) -> None:
        sendfile, inode = os.sendfile, self.file.stat().st_ino

        def failing(socket: int, fd: int, start: int, count: int) -> int:
            if os.fstat(fd).st_ino != inode:
                return sendfile(socket, fd, start, count)
            if start >= offset:
                raise OSError(5, "Input/output error")
            return sendfile(socket, fd, start, min(count, offset - start))

        self._monkeypatch.setattr(os, "sendfile", failing)

    def spoil(self) -> None:
        with self.file.open("r+b") as file:
            file.seek(SIZE // 2)
            file.write(bytes([DATA[SIZE // 2] ^ 0xFF]))


class Fetching(Stage):
    """A replica that fetches the blob right now, again for each body."""

    is_proof = False

    def __init__(self, source: Source, one: Proxy, upstream: FakeUpstream) -> None:
        self.place = source.place
        self.blob_size = source.blob_size
        self.reject = source.reject
        self.source = Confirmed(self)
        self._source = source
        self._one = one
        self._upstream = upstream
        self._faults: list[faults.Effect] = []
        self._is_spoilt = False
        self._gets: list[asyncio.Task[object]] = []

    def break_at(self, offset: int) -> None:
        self._faults = [faults.truncate(offset)]

    def spoil(self) -> None:
        self._is_spoilt = True

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a body that is opened while the other replica waits for the rest."""
        await self.close()
        await self._one.app.content.faults.drop(digest, reason="test")
        gate = asyncio.Event()
        fault = faults.stall(HALF, gate)
        self._upstream.fault(fault, *self._faults, kind="blob", reference=digest, times=1)
        repo = "org/else" if digest in OTHERS.blobs else "library/app"
        get = asyncio.create_task(self._one.get(f"/v2/{repo}/blobs/{digest}"))
        self._gets.append(get)
        await until(lambda: get.done() or bool(self._one.stats["downloads"]))
        if digest == LAYER:
            await until(lambda: self._one.stats["downloads"][0]["bytes"] > HALF // 2)
        if self._is_spoilt:
            (spool,) = self._one.spooled()
            with spool.open("r+b") as file:
                file.seek(HALF // 4)
                file.write(bytes([DATA[HALF // 4] ^ 0xFF]))
        try:
            return await self._opened(target, digest, offset, priority)
        finally:
            gate.set()

    async def _opened(
        self, target: Target, digest: Digest, offset: int, priority: Priority
    ) -> Body:
        return await self._source.open(target, digest, offset, priority)

    async def close(self) -> None:
        """Return once the other replica fetches nothing."""
        await asyncio.gather(*self._gets, return_exceptions=True)
        await self._one.settled()


class RescuedBody:
    """A body whose first byte came from elsewhere."""

    def __init__(self, rest: Body) -> None:
        self.size = rest.size
        self.is_public = rest.is_public
        self.is_confirmed = rest.is_confirmed
        self.aclose = rest.aclose
        self._rest = rest

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        yield Piece(0, DATA[:1])
        async for piece in self._rest.pieces():
            yield piece


class Rescue(Fetching):
    """A replica that goes on after the first byte."""

    async def _opened(
        self, target: Target, digest: Digest, offset: int, priority: Priority
    ) -> Body:
        body = await self._source.open(target, digest, max(1, offset), priority)
        return RescuedBody(body) if offset == 0 else body


class Small(Stage):
    """Redis, which has the blob."""

    def __init__(self, source: SmallBlobs, server: redis.Redis, patch: pytest.MonkeyPatch) -> None:
        self.source = source
        self._server = server
        self._patch = patch

    async def fill(self) -> None:
        for repo, image in (("library/app", IMAGE), ("org/else", OTHERS)):
            for digest, data in image.blobs.items():
                key = f"millpond:1:default:blob:docker.io:{repo}:{digest}"
                await asked(self._server, "SET", key, b"1" + data)

    def break_at(self, offset: int) -> None:
        async def breaking(body: small_blobs._SmallBody) -> AsyncGenerator[Piece, None]:
            yield Piece(body._offset, body._data[body._offset : offset])
            raise UpstreamUnavailable("a test breaks it off")

        self._patch.setattr(small_blobs._SmallBody, "pieces", breaking)

    def spoil(self) -> None:
        self._patch.setattr(small_blobs, "matches", lambda *_: True)
        with self._server.client() as client:
            key = f"millpond:1:default:blob:docker.io:library/app:{LAYER}"
            client.setrange(key, SIZE // 2, bytes([DATA[SIZE // 2 - 1] ^ 0xFF]))


KINDS = ("replica that holds", "replica that fetches", "replica that rescues", "redis")


@asynccontextmanager
async def replica_stage(
    kind: str, upstream: FakeUpstream, root: Path, patch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    """Give one of `KINDS`."""
    for name in ("CONNECT_SECONDS", "ANSWER_SECONDS"):  # of Redis, on a loaded machine
        patch.setattr(connecting, name, 30.0)
    patch.setattr(sources, "RESCUE_SECONDS", 0.3)
    patch.setattr(sources, "GIVE_UP_SECONDS", 0.5)
    with redis.running() as server:
        async with starting(upstream, server, Clock(), root) as start:
            one, other = await start(), await start()
            exchange = fleet(other).exchange
            assert exchange is not None
            peers = exchange.peers
            if kind == "redis":
                small = Small(
                    SmallBlobs(fleet(other).store, SIZE, other.app.content.read_untouched),
                    server,
                    patch,
                )
                await small.fill()
                yield small
            elif kind == "replica that holds":
                await acquainted(one, other)
                assert (await one.get(f"/v2/library/app/blobs/{LAYER}")).body == DATA
                await one.settled()
                yield Holder(peers.replicas, blob_file(one.storage, LAYER), patch)
            else:
                fetching = await _fetching(kind, exchange, (one, other), upstream)
                yield fetching
                await fetching.close()


async def _fetching(
    kind: str, exchange: ContentExchange, replicas: tuple[Proxy, Proxy], upstream: FakeUpstream
) -> Fetching:
    if kind == "replica that fetches":
        return Fetching(exchange.peers.lease_holder, replicas[0], upstream)
    await acquainted(*replicas)
    return Rescue(exchange.peers.rescue, replicas[0], upstream)
