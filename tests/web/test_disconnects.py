"""Clients that disconnect at any moment, and shutdowns: others do not notice, and nothing is left.

Not a task, not a descriptor, not a file in the spool; and what was begun is finished.
"""

import asyncio
import os
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import pytest

from tests.fakes import content
from tests.fakes.faults import slow
from tests.fakes.upstream import FakeUpstream
from tests.leaks import assert_sound, at_rest, descriptors, nothing_left, opened, working
from tests.running import Proxy, Start, until

REPO = "library/app"
IMAGE = content.image(1, layers=(3_000_000,))
[LAYER] = IMAGE.layers
HALF = 1_000_000
MANIFEST = f"/v2/{REPO}/manifests/latest"
BLOB = f"/v2/{REPO}/blobs/{LAYER}"
BODIES = {MANIFEST: IMAGE.manifest, BLOB: IMAGE.blobs[LAYER]}


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add(REPO, IMAGE)


class Caller:
    """One client on a connection of its own, which reads no more than it is told to."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._length = 0

    @classmethod
    async def of(cls, proxy: Proxy, path: str, method: str = "GET") -> Self:
        """Connect and ask."""
        host, port = proxy.app.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        return cls(reader, writer)

    async def headers(self) -> int:
        """Return the status."""
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().splitlines()
        lengths = [line.split(":")[1] for line in lines if line.startswith("content-length:")]
        self._length = int(lengths[0])
        return int(lines[0].split()[1])

    async def some(self, count: int) -> bytes:
        """Return the next bytes of the body."""
        return await self._reader.readexactly(count)

    async def answer(self) -> tuple[int, bytes]:
        """Return status and body."""
        async with asyncio.timeout(30):
            status = await self.headers()
            return status, await self.some(self._length)

    def leave(self) -> None:
        """Close the connection."""
        self._writer.transport.abort()

    def slam(self) -> None:
        """Reset the connection: a machine that lost power, seen by the one who asks it."""
        held = self._writer.get_extra_info("socket")
        with socket.socket(fileno=os.dup(held.fileno())) as same:
            same.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()


Held = Callable[[], None]


@dataclass(frozen=True)
class Phase:
    """A moment in a request's life: where upstream holds it up, and what shows that it is there."""

    name: str
    path: str
    hold: Callable[[FakeUpstream], Held]
    reached: Callable[[FakeUpstream, Proxy], bool]
    streams: bool = False

    async def begin(self, proxy: Proxy, upstream: FakeUpstream, callers: int) -> list[Caller]:
        """Return clients that have all come so far; the first came first."""
        first = await Caller.of(proxy, self.path)
        await until(lambda: self.reached(upstream, proxy))
        others = [await Caller.of(proxy, self.path) for _ in range(callers - 1)]
        everybody = [first, *others]
        if self.streams:
            for caller in everybody:
                assert await caller.headers() == 200
                assert await caller.some(1000) == BODIES[self.path][:1000]
        else:
            await until(lambda: proxy.app.responses() == callers)
            await asyncio.sleep(0.02)  # the others have nothing to show for their waiting
        return everybody


def held(kind: Any) -> Callable[[FakeUpstream], Held]:
    return lambda upstream: upstream.hold(kind=kind).set


def token_held(upstream: FakeUpstream) -> Held:
    upstream.auth.scheme = "bearer"
    return upstream.hold(kind="token").set


def warm(_: FakeUpstream) -> Held:
    return lambda: None


def asked(kind: Any) -> Callable[[FakeUpstream, Proxy], bool]:
    return lambda upstream, _: upstream.count("GET", kind) == 1


HEADERS = Phase("before the blob's headers", BLOB, held("blob"), asked("blob"))
BODY = Phase(
    "in the cold body",
    BLOB,
    lambda upstream: upstream.stall(HALF, kind="blob").set,
    lambda _, proxy: bool(proxy.spooled()),
    streams=True,
)
WARM = Phase("in the warm body", BLOB, warm, lambda *_: True, streams=True)
TAG = Phase("before the manifest", MANIFEST, held("manifest"), asked("manifest"))
TOKEN = Phase("before the token", BLOB, token_held, lambda fake, _: bool(fake.token_requests))
TAG_TOKEN = Phase(
    "before the token of a tag", MANIFEST, token_held, lambda fake, _: bool(fake.token_requests)
)
PHASES = (HEADERS, BODY, WARM, TAG, TOKEN, TAG_TOKEN)
LEAVERS = {"first": [0], "last": [2], "all but one": [0, 2], "all": [0, 1, 2]}

each_phase = pytest.mark.parametrize("phase", PHASES, ids=[phase.name for phase in PHASES])


async def ready(start: Start, upstream: FakeUpstream, phase: Phase, **settings: Any) -> Proxy:
    """Return a proxy that holds what the phase needs."""
    proxy = await start(**settings)
    if phase is WARM:
        await proxy.get(BLOB)
        await proxy.settled()
    upstream.clear()
    return proxy


@pytest.mark.parametrize("go", [Caller.leave, Caller.slam], ids=["close", "reset"])
@pytest.mark.parametrize("who", LEAVERS)
@each_phase
async def test_t06_clients_leave(
    start: Start, upstream: FakeUpstream, phase: Phase, who: str, go: Callable[[Caller], None]
) -> None:
    async with nothing_left():
        proxy = await ready(start, upstream, phase)
        before = working()
        release = phase.hold(upstream)
        callers = await phase.begin(proxy, upstream, 3)
        leaving = [callers[place] for place in LEAVERS[who]]
        for caller in leaving:
            go(caller)
        await asyncio.sleep(0.02)
        release()
        body = BODIES[phase.path]
        for caller in callers:
            if caller in leaving:
                continue
            if phase.streams:
                assert await caller.some(len(body) - 1000) == body[1000:]
            else:
                assert await caller.answer() == (200, body)
            caller.leave()
        await at_rest(proxy, before)
        assert (LAYER if phase.path is BLOB else IMAGE.digest) in proxy.held(), "it was finished"
        assert (await proxy.get(phase.path)).body == body
        fetches = len([r for r in upstream.requests if r.begun])
        assert fetches == (0 if phase is WARM else 1)
        await proxy.close()


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
async def test_t06_a_reader_that_stops_reading_holds_up_nobody(
    start: Start, upstream: FakeUpstream, *, cold: bool
) -> None:
    """Neither the download nor the others; and when it leaves, nothing of it is left."""
    big = content.image(2, layers=(20_000_000,))  # more than all buffers on the way together
    upstream.add(REPO, big)
    [digest] = big.layers
    path, data = f"/v2/{REPO}/blobs/{digest}", big.blobs[digest]
    async with nothing_left():
        proxy = await start()
        if not cold:
            await proxy.get(path)
            await proxy.settled()
        before = working()
        slow_ones = [await Caller.of(proxy, path) for _ in range(3)]
        for caller in slow_ones:
            assert await caller.headers() == 200
            assert await caller.some(1000) == data[:1000]
        for _ in range(2):
            async with asyncio.timeout(30):
                assert (await proxy.get(path)).body == data
        await proxy.settled()
        assert proxy.held() == {digest}
        assert len(opened(proxy)) == 3 if not cold else opened(proxy)
        slow_ones[0].leave()
        slow_ones[1].slam()
        async with asyncio.timeout(30):
            assert await slow_ones[2].some(len(data) - 1000) == data[1000:], "slow, but served"
        slow_ones[2].leave()
        await at_rest(proxy, before)
        assert upstream.bodies(digest) == 1
        await proxy.close()


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("what", ["cold blob", "warm blob", "cold tag", "stale tag"])
async def test_t06_a_client_that_leaves_at_any_moment(
    start: Start, upstream: FakeUpstream, what: str, method: str
) -> None:
    """After every number of turns of the loop, so at every await on the way."""
    upstream.auth.scheme = "bearer"
    async with nothing_left():
        proxy = await start(freshness={"tag_ttl": 0, "stale_while_revalidate": 0})
        await proxy.get("/v2/")
        before = working()
        paths = {}
        for turns in range(48):
            image = content.image(f"{what} {turns}", layers=(100_000,))
            upstream.add(f"library/app{turns}", image)
            [layer] = image.layers
            kind, ref = ("blobs", layer) if "blob" in what else ("manifests", "latest")
            path = f"/v2/library/app{turns}/{kind}/{ref}"
            paths[path] = image.blobs[layer] if kind == "blobs" else image.manifest
            if not what.startswith("cold"):
                assert (await proxy.get(path)).status == 200
            caller = await Caller.of(proxy, path, method)
            for _ in range(turns):
                await asyncio.sleep(0)
            caller.leave()
        await at_rest(proxy, before)
        for path, body in paths.items():
            async with asyncio.timeout(30):
                assert (await proxy.get(path)).body == body
        await at_rest(proxy, before)
        await proxy.close()


async def test_c08_clients_that_leave_a_range_disturb_nobody(
    start: Start, upstream: FakeUpstream
) -> None:
    """containerd asks for open ranges in parallel and hangs up on each after its part."""
    async with nothing_left():
        proxy = await start()
        before = working()
        upstream.fault(slow(30_000_000), kind="blob")
        host, port = proxy.app.address.split(":")
        got = {}
        for offset in range(0, 3_000_000, 500_000):
            reader, writer = await asyncio.open_connection(host, int(port))
            lines = f"GET {BLOB} HTTP/1.1\r\nHost: x\r\nRange: bytes={offset}-\r\n\r\n"
            writer.write(lines.encode())
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 206 ")
            got[offset] = await reader.readexactly(500_000)
            writer.transport.abort()
        assert b"".join(got.values()) == BODIES[BLOB]
        await at_rest(proxy, before)
        assert upstream.bodies(LAYER) == 1
        assert proxy.numbers["errors"] == {}
        await proxy.close()


async def test_a_client_that_leaves_what_passes_through(
    start: Start, upstream: FakeUpstream
) -> None:
    """There the client's connection is all that keeps the download alive."""
    async with nothing_left():
        proxy = await start(storage={"max_size": "1MiB"})
        await proxy.get("/v2/")
        before = working()
        release = upstream.stall(HALF, kind="blob")
        callers = [await Caller.of(proxy, BLOB) for _ in range(2)]
        for caller in callers:
            assert await caller.headers() == 200
        await callers[1].some(1000)
        for caller in callers:
            caller.leave()
        await upstream.until(
            lambda: all(r.outcome == "dropped" for r in upstream.requests if r.kind == "blob")
        )
        release.set()
        await at_rest(proxy, before)
        assert (await proxy.get(BLOB)).body == BODIES[BLOB]
        await at_rest(proxy, before)
        assert not proxy.held()
        await proxy.close()


@pytest.mark.parametrize("leave_first", [True, False], ids=["nobody waits", "somebody waits"])
@each_phase
async def test_a_shutdown_in_each_phase(
    start: Start, upstream: FakeUpstream, phase: Phase, *, leave_first: bool
) -> None:
    """After its grace everything ends, and no answer looks whole that is not."""
    async with nothing_left():
        proxy = await ready(start, upstream, phase, shutdown_grace="100ms")
        release = phase.hold(upstream)
        callers = await phase.begin(proxy, upstream, 2)
        if leave_first:
            for caller in callers:
                caller.leave()
        async with asyncio.timeout(30):
            await proxy.close()
        if not leave_first and phase is not WARM:
            for caller in callers:
                await cut_off_or_told(caller, streams=phase.streams)
        for caller in callers:
            caller.leave()
        release()
        assert not proxy.spooled()
        assert_sound(proxy.storage)
    upstream.heal()
    upstream.auth.scheme = "none"
    again = await start()
    assert (await again.get(phase.path)).body == BODIES[phase.path]


async def cut_off_or_told(caller: Caller, *, streams: bool) -> None:
    """Fail unless the connection ends, or says by a failure's status that there is no more."""
    try:
        async with asyncio.timeout(30):
            status = 200 if streams else await caller.headers()
            assert status in {200, 502, 503, 504}
            if status == 200:
                await caller.some(len(BODIES[BLOB]) - 1000)
                pytest.fail("the answer came whole")
    except (asyncio.IncompleteReadError, ConnectionError):
        return


async def test_a_shutdown_waits_for_what_has_come_whole(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A download that is being synced is kept, not thrown away."""
    syncing, go_on = threading.Event(), threading.Event()
    real = os.fsync

    def fsync(fd: int) -> None:
        if "/spool/" in descriptors().get(fd, ""):
            syncing.set()
            assert go_on.wait(30)
        real(fd)

    async with nothing_left():
        proxy = await start(shutdown_grace="50ms")
        monkeypatch.setattr(os, "fsync", fsync)
        assert (await proxy.get(BLOB)).body == BODIES[BLOB]
        await until(syncing.is_set)
        closing = asyncio.create_task(proxy.close())
        await asyncio.sleep(0.2)
        assert not closing.done()
        go_on.set()
        async with asyncio.timeout(30):
            await closing
        assert proxy.held() == {LAYER}
        assert not proxy.spooled()


@pytest.mark.parametrize("end", ["shutdown", "dropped"])
async def test_a_spool_stays_open_while_it_is_written(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A write in a thread outlives the task that asked for it.

    Were the descriptor closed meanwhile, the next file to be opened would get its number, and the
    bytes.
    """
    writing, go_on = threading.Event(), threading.Event()
    targets: list[str] = []
    real = os.pwrite

    def pwrite(fd: int, data: bytes, offset: int) -> int:
        if not go_on.is_set():
            writing.set()
            assert go_on.wait(30)
            targets.append(descriptors().get(fd, "closed"))
        return real(fd, data, offset)

    async with nothing_left():
        proxy = await start(shutdown_grace="50ms", storage={"min_complete_ratio": 1})
        monkeypatch.setattr(os, "pwrite", pwrite)
        caller = await Caller.of(proxy, BLOB)
        await until(writing.is_set)
        if end == "dropped":
            caller.leave()
            await asyncio.sleep(0.1)
            go_on.set()
        closing = asyncio.create_task(proxy.close())
        await asyncio.sleep(0.2)
        go_on.set()
        async with asyncio.timeout(30):
            await closing
        caller.leave()
        await until(lambda: bool(targets))
        assert "/spool/" in targets[0]


@pytest.mark.parametrize("phase", [HEADERS, BODY, TOKEN], ids=lambda phase: phase.name)
@pytest.mark.parametrize("stays", [True, False], ids=["one stays", "all leave"])
async def test_a_download_of_which_little_has_come_is_dropped_when_all_have_left(
    start: Start, upstream: FakeUpstream, phase: Phase, *, stays: bool
) -> None:
    async with nothing_left():
        proxy = await ready(start, upstream, phase, storage={"min_complete_ratio": 0.5})
        before = working()
        release = phase.hold(upstream)
        callers = await phase.begin(proxy, upstream, 3)
        for caller in callers[stays:]:
            caller.leave()
        await asyncio.sleep(0.05)
        if stays:
            assert proxy.stats["downloads"]
        else:
            await proxy.settled()
        release()
        if stays:
            rest = BODIES[BLOB][1000:] if phase.streams else BODIES[BLOB]
            got = callers[0].some(len(rest)) if phase.streams else callers[0].answer()
            assert await got in {rest, (200, rest)}
            callers[0].leave()
        await at_rest(proxy, before)
        assert proxy.held() == ({LAYER} if stays else set())
        assert (await proxy.get(BLOB)).body == BODIES[BLOB]
        await at_rest(proxy, before)
        assert proxy.held() == {LAYER}
        await proxy.close()
