import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from proxy.content.downloads import Download, Downloads, Pour, Reader, Sink
from proxy.core.errors import ContentMismatch, UpstreamUnavailable
from proxy.core.names import Digest, Repo, Target, sha256
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskStore
from tests.fakes.content import blob

DATA = blob(3_000_000)
DIGEST = sha256(DATA)
TARGET = Target("docker.io", Repo("library/app"))


async def no_limit(_: int) -> None:
    return


def poured(body: AsyncIterator[bytes]) -> Pour:
    """Give a body in its order."""

    async def pour(sink: Sink) -> None:
        offset = 0
        async for chunk in body:
            await sink(offset, chunk)
            offset += len(chunk)

    return pour


class Field:
    """Flights over a store of their own, and a count of the bodies begun."""

    def __init__(self, store: DiskStore) -> None:
        self.store = store
        self.flights = Downloads()
        self.bodies = 0
        self.gate = asyncio.Event()
        self.gate.set()

    def join(self, data: bytes = DATA, *, size: int | None = len(DATA), breaks_at: int | None = None, holds_at: int = 0) -> Reader:  # fmt: skip
        async def body() -> AsyncIterator[bytes]:
            for start in range(0, len(data), 65536):
                if start >= holds_at:
                    await self.gate.wait()
                if breaks_at is not None and start >= breaks_at:
                    raise UpstreamUnavailable("gone")
                await asyncio.sleep(0)
                yield data[start : start + 65536]

        async def run(flight: Download) -> None:
            self.bodies += 1
            spool = await self.store.spool(DIGEST, size)
            try:
                flight.open(spool, size)
                await flight.pump(poured(body()), no_limit)
                await self.store.put(DIGEST, spool)
            finally:
                spool.discard()

        return self.flights.join(TARGET, DIGEST, run)


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Field]:
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    directory = Directory(tmp_path / "cache")
    field = Field(DiskStore(directory))
    yield field
    await field.flights.close()
    directory.close()
    assert not list((tmp_path / "cache/spool").iterdir())
    assert len(os.listdir("/proc/self/fd")) <= before, "descriptors leak"  # noqa: PTH208


async def read(reader: Reader, start: int, stop: int | None) -> AsyncIterator[bytes]:
    """Read as a sender does: as far as it may, from the spool."""
    offset, flight = start, reader.flight
    while stop is None or offset < stop:
        end = await flight.readable(offset)
        if end <= offset:
            return
        chunk = os.pread(flight.fd, (end if stop is None else min(end, stop)) - offset, offset)
        offset += len(chunk)
        yield chunk


async def everything(reader: Reader, start: int = 0, stop: int | None = None) -> bytes:
    try:
        await reader.flight.opened()
        return b"".join([chunk async for chunk in read(reader, start, stop)])
    finally:
        reader.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


async def test_c04_many_readers_one_body(field: Field) -> None:
    readers = [field.join() for _ in range(50)]
    assert [reader.first for reader in readers] == [True] + [False] * 49
    assert all(got == DATA for got in await asyncio.gather(*map(everything, readers)))
    assert field.bodies == 1
    await until(lambda: not field.flights.all())
    file = field.store.open(DIGEST)
    assert file is not None
    file.close()


async def test_t06_a_reader_that_leaves_disturbs_nobody(field: Field) -> None:
    field.gate.clear()
    first = asyncio.create_task(everything(field.join()))
    second = asyncio.create_task(everything(field.join()))
    await asyncio.sleep(0.01)
    first.cancel()
    field.gate.set()
    assert await second == DATA


async def test_a_download_without_readers_finishes(field: Field) -> None:
    field.join().close()
    await until(lambda: not field.flights.all())
    file = field.store.open(DIGEST)
    assert file is not None
    assert file.read() == DATA
    file.close()


async def test_c23_ranges_and_late_joiners_of_a_growing_blob(field: Field) -> None:
    field.gate.clear()
    early = asyncio.create_task(everything(field.join(), 100, 2000))
    field.gate.set()
    assert await early == DATA[100:2000]
    late = field.join()
    assert await everything(late, 2_500_000, 2_500_100) == DATA[2_500_000:2_500_100]


async def test_t02_what_is_wrong_is_never_delivered_whole(field: Field) -> None:
    wrong = b"\0" + DATA[1:]
    reader = field.join(wrong)
    got = bytearray()

    async def collect() -> None:
        async for chunk in read(reader, 0, None):
            got.extend(chunk)

    with pytest.raises(ContentMismatch):
        await collect()
    reader.close()
    assert 0 < len(got) < len(DATA)
    await until(lambda: not field.flights.all())
    assert field.store.open(DIGEST) is None


async def test_t01_a_body_that_is_too_short_is_an_error(field: Field) -> None:
    with pytest.raises(UpstreamUnavailable, match="broke off"):
        await everything(field.join(DATA[:-10]))


async def test_t38_a_failure_reaches_every_reader_and_the_next_starts_anew(field: Field) -> None:
    readers = [field.join(breaks_at=1_000_000) for _ in range(5)]
    results = await asyncio.gather(*map(everything, readers), return_exceptions=True)
    assert all(isinstance(result, UpstreamUnavailable) for result in results)
    assert field.bodies == 1
    assert await everything(field.join()) == DATA


async def test_a_failure_before_opening_reaches_every_reader() -> None:
    flights = Downloads()

    async def run(flight: Download) -> None:
        await asyncio.sleep(0)
        raise UpstreamUnavailable("refused")

    readers = [flights.join(TARGET, DIGEST, run) for _ in range(3)]
    results = await asyncio.gather(*map(everything, readers), return_exceptions=True)
    assert [str(result) for result in results] == ["refused"] * 3
    assert not flights.all()


async def test_an_unannounced_size_is_known_at_the_end(field: Field) -> None:
    reader = field.join(size=None)
    await reader.flight.opened()
    assert reader.flight.size is None
    assert await everything(reader) == DATA
    assert reader.flight.size == len(DATA)


async def test_pieces_in_any_order_are_read_and_proven_in_theirs(tmp_path: Path) -> None:
    chance = random.Random(7)
    edges = sorted({0, len(DATA), *chance.sample(range(1, len(DATA)), 60)})
    pieces = list(pairwise(edges))
    chance.shuffle(pieces)
    directory = Directory(tmp_path / "cache")
    store, flights = DiskStore(directory), Downloads()
    told: list[int] = []

    async def pour(sink: Sink) -> None:
        for start, stop in pieces:
            told.append(flight.written)
            assert await flight.readable(-2) <= flight.written
            await sink(start, DATA[start:stop])

    async def run(flight: Download) -> None:
        flight.open(await store.spool(DIGEST, len(DATA)), len(DATA))
        await flight.pump(pour, no_limit)

    reader = flights.join(TARGET, DIGEST, run)
    flight = reader.flight
    assert await everything(reader) == DATA
    come: set[int] = set()
    for written, (start, stop) in zip(told, pieces, strict=True):
        assert written == next((at for at in range(len(DATA)) if at not in come), len(DATA))
        come |= set(range(start, stop))
    await flights.close()
    directory.close()


async def test_an_empty_blob(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "cache")
    flights, store, empty = Downloads(), DiskStore(directory), Digest(sha256(b""))

    async def body() -> AsyncIterator[bytes]:
        return
        yield b""

    async def run(flight: Download) -> None:
        flight.open(await store.spool(empty, 0), 0)
        await flight.pump(poured(body()), no_limit)

    assert await everything(flights.join(TARGET, empty, run)) == b""
    await flights.close()
    directory.close()


async def test_a_slow_reader_holds_up_neither_download_nor_others(field: Field) -> None:
    slow = field.join()
    chunks = read(slow, 0, None)
    await anext(chunks)
    assert await everything(field.join()) == DATA
    await until(lambda: not field.flights.all())
    rest: Callable[[], Awaitable[bytes]] = chunks.__anext__
    assert len(await rest()) > 0
    await chunks.aclose()
    slow.close()


async def test_closing_cancels_and_says_so(field: Field) -> None:
    field.gate.clear()
    waiting = asyncio.create_task(everything(field.join()))
    await asyncio.sleep(0.01)
    await field.flights.close()
    with pytest.raises(UpstreamUnavailable, match="cancelled"):
        await waiting


async def test_a_download_that_nobody_wants_any_more_is_dropped_if_hardly_begun(
    tmp_path: Path,
) -> None:
    for holds_at, goes_on in ((1_000_000, False), (2_000_000, True)):
        directory = Directory(tmp_path / str(holds_at))
        field = Field(DiskStore(directory))
        field.flights = Downloads(finish_from=0.5)
        field.gate.clear()
        reader = field.join(holds_at=holds_at)
        await reader.flight.readable(holds_at - 100_000)
        reader.close()
        await asyncio.sleep(0.01)
        assert bool(field.flights.all()) is goes_on
        field.gate.set()
        assert await everything(field.join()) == DATA
        await field.flights.close()
        assert field.bodies == (1 if goes_on else 2)
        directory.close()


async def test_a_dropped_download_leaves_its_successor_to_be_joined(field: Field) -> None:
    field.gate.clear()
    dropped = field.join()
    await until(lambda: field.bodies == 1)
    field.flights.abandon(dropped)
    successor = field.join()
    await until(lambda: dropped.flight.failure is not None)
    assert field.flights.live(TARGET, DIGEST) is successor.flight
    joined = field.join()
    assert (joined.flight, joined.first) == (successor.flight, False)
    field.gate.set()
    assert await asyncio.gather(everything(successor), everything(joined)) == [DATA, DATA]
    assert field.bodies == 2


async def test_t47_a_download_is_joined_by_its_own_upstream_only(field: Field) -> None:
    field.gate.clear()
    own = field.join()

    async def run(_: Download) -> None:
        await field.gate.wait()
        raise UpstreamUnavailable("another upstream failed")

    other = Target("ghcr.io", TARGET.repo)
    foreign = field.flights.join(other, DIGEST, run)
    assert foreign.first
    assert len(field.flights.all()) == 2
    assert field.flights.live(other, DIGEST) is foreign.flight
    joined = field.join()
    assert joined.flight is own.flight
    joined.close()
    field.gate.set()
    with pytest.raises(UpstreamUnavailable, match="another upstream"):
        await everything(foreign)
    assert await everything(own) == DATA


async def test_t50_room_is_wanted_for_bytes_that_have_come_not_for_where_they_belong(
    tmp_path: Path,
) -> None:
    far = blob(20 * 1024 * 1024)
    piece, ends = 64 * 1024, (len(far) // 2, len(far))
    directory = Directory(tmp_path / "cache")
    store, flights, digest = DiskStore(directory), Downloads(), sha256(far)
    come, wanted, taken = 0, list[int](), list[int]()

    async def pour(sink: Sink) -> None:
        nonlocal come
        for offset in range(0, ends[0], piece):
            for start in (offset, ends[0] + offset):
                chunk = far[start : start + piece]
                come += len(chunk)
                await sink(start, chunk)
                taken.append(os.fstat(flight.fd).st_blocks * 512)

    async def room_for(size: int) -> None:
        wanted.append(size)
        assert size <= come + 4 * 4096

    async def run(flight: Download) -> None:
        flight.open(await store.spool(digest, None), len(far))
        await flight.pump(pour, room_for)

    reader = flights.join(TARGET, digest, run)
    flight = reader.flight
    assert await everything(reader) == far
    assert all(used <= most for used, most in zip(taken, wanted, strict=True))
    await flights.close()
    directory.close()


async def test_the_last_reader_of_a_failed_download_ends_what_it_takes(field: Field) -> None:
    ended: list[bool] = []
    field.gate.clear()
    readers = [field.join(breaks_at=1_000_000) for _ in range(2)]
    readers[0].flight.on_closed(lambda: ended.append(True))
    field.gate.set()
    await until(lambda: readers[0].flight.failure is not None)
    readers[0].close()
    assert not ended
    readers[1].close()
    assert ended == [True]


async def test_a_download_that_is_cancelled_before_it_begins_tells_its_readers(
    field: Field,
) -> None:
    reader = field.join()
    await field.flights.close()
    async with asyncio.timeout(30):
        with pytest.raises(UpstreamUnavailable):
            await reader.flight.opened()
    reader.close()
    assert not field.flights.all()
