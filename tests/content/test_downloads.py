import asyncio
import os
import random
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from proxy.content.downloads import Downloads, Reader
from proxy.content.fetching import Fetch
from proxy.content.reservations import BodyReservation
from proxy.content.writer import MAX_WAITING, STEP
from proxy.core.errors import ContentMismatch, UpstreamUnavailable
from proxy.core.names import Digest, Repo, Target, sha256
from proxy.core.sources import Piece, Place, Priority
from proxy.storage.disk import DiskSpool
from tests.fakes.clock import Clock
from tests.fakes.content import blob
from tests.held import Held, opened
from tests.leaks import opened_below

DATA = blob(3_000_000)
DIGEST = sha256(DATA)
TARGET = Target("docker.io", Repo("library/app"))
LARGE = {"max_size": 1 << 30, "unproven_share": 1.0}


class Pieces:
    """A source that gives what it is told to, piece by piece, from the offset that is wanted."""

    is_public = False
    is_confirmed = True
    place = Place.REGISTRY

    def __init__(self, pieces: list[Piece], size: int | None) -> None:
        self.size = size
        self.bodies = 0
        self.given = 0
        self.rejected: list[Digest] = []
        self.holds_at = 0
        self.breaks_at: int | None = None
        self.refusal: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()
        self._pieces = pieces

    async def open(
        self, target: Target, digest: Digest, offset: int, priority: Priority
    ) -> "Pieces":
        self.bodies += 1
        if self.refusal is not None:
            await self.gate.wait()
            raise self.refusal
        return self

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        return self.size

    def reject(self, digest: Digest) -> None:
        self.rejected.append(digest)

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        for offset, data in self._pieces:
            if offset >= self.holds_at:
                await self.gate.wait()
            if self.breaks_at is not None and offset >= self.breaks_at:
                raise UpstreamUnavailable("gone")
            await asyncio.sleep(0)
            self.given += len(data)
            yield Piece(offset, data)

    async def aclose(self) -> None:
        return


def in_order(data: bytes, step: int = 65536) -> list[Piece]:
    return [Piece(start, data[start : start + step]) for start in range(0, len(data), step)]


class Field:
    """Downloads into a cache, and the source of the last one that was begun."""

    def __init__(self, held: Held, min_complete: float = 0.0) -> None:
        self.held = held
        self.store = held.store
        self.downloads = Downloads(held.content, min_complete)
        self.sources: list[Pieces] = []
        self.gate = asyncio.Event()
        self.gate.set()

    @property
    def bodies(self) -> int:
        return sum(source.bodies for source in self.sources)

    def join(self, data: bytes = DATA, *, size: int | None = len(DATA), breaks_at: int | None = None, holds_at: int = 0) -> Reader:  # fmt: skip
        source = Pieces(in_order(data), size)
        source.breaks_at, source.holds_at, source.gate = breaks_at, holds_at, self.gate
        return self.join_from(source)

    def join_from(self, source: Pieces, digest: Digest = DIGEST, target: Target = TARGET) -> Reader:
        self.sources.append(source)
        return self.downloads.join(Fetch(target, digest, [source]))


@pytest.fixture
async def field(tmp_path: Path) -> AsyncIterator[Field]:
    async with opened(tmp_path / "cache", Clock(), **LARGE) as held:
        field = Field(held)
        yield field
        await field.downloads.close()
        assert held.evictor.used == held.index.usage().disk_bytes, "room is not given back"
    assert not list((tmp_path / "cache/spool").iterdir())
    assert not opened_below(tmp_path), "descriptors leak"


async def read(reader: Reader, start: int, stop: int | None) -> AsyncIterator[bytes]:
    """Read as a sender does: as far as it may, from the spool."""
    offset = start
    while stop is None or offset < stop:
        end = await reader.readable(offset)
        if end <= offset:
            return
        chunk = reader.read(offset, end if stop is None else min(end, stop))
        offset += len(chunk)
        yield chunk


async def everything(reader: Reader, start: int = 0, stop: int | None = None) -> bytes:
    try:
        await reader.download.opened()
        return b"".join([chunk async for chunk in read(reader, start, stop)])
    finally:
        reader.close()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.001)


async def test_c04_many_readers_one_body(field: Field) -> None:
    readers = [field.join() for _ in range(50)]
    assert [reader.is_first for reader in readers] == [True] + [False] * 49
    assert all(got == DATA for got in await asyncio.gather(*map(everything, readers)))
    assert field.bodies == 1
    await until(lambda: not field.downloads.all())
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
    await until(lambda: not field.downloads.all())
    file = field.store.open(DIGEST)
    assert file is not None
    assert file.read(0, file.size) == DATA
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
    await until(lambda: not field.downloads.all())
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


async def test_a_failure_before_opening_reaches_every_reader(field: Field) -> None:
    source = Pieces([], None)
    source.refusal = UpstreamUnavailable("refused")
    readers = [field.join_from(source) for _ in range(3)]
    results = await asyncio.gather(*map(everything, readers), return_exceptions=True)
    assert [str(result) for result in results] == ["refused"] * 3
    assert not field.downloads.all()


async def test_an_unannounced_size_is_known_at_the_end(field: Field) -> None:
    reader = field.join(size=None)
    await reader.download.opened()
    assert reader.download.size is None
    assert await everything(reader) == DATA
    assert reader.download.size == len(DATA)


@pytest.mark.parametrize("seed", range(5))
async def test_pieces_in_any_order_are_read_and_proven_in_theirs(field: Field, seed: int) -> None:
    chance = random.Random(seed)
    edges = sorted({0, len(DATA), *chance.sample(range(1, len(DATA)), 60)})
    pieces = [Piece(start, DATA[start:stop]) for start, stop in pairwise(edges)]
    chance.shuffle(pieces)
    source = Pieces(pieces, len(DATA))
    reader = field.join_from(source)
    assert await everything(reader) == DATA
    await until(lambda: not field.downloads.all())
    file = field.store.open(DIGEST)
    assert file is not None
    assert file.read(0, file.size) == DATA
    file.close()


async def test_t02_a_wrong_byte_behind_a_gap_is_found(field: Field) -> None:
    wrong = DATA[:-1] + b"\0"
    assert wrong != DATA
    last, *rest = reversed(in_order(wrong))
    with pytest.raises(ContentMismatch):
        await everything(field.join_from(Pieces([last, *reversed(rest)], len(DATA))))
    assert field.sources[0].rejected == [DIGEST]
    assert field.held.counters.mismatches == 1


async def test_t02_bytes_that_come_again_change_nothing_that_was_hashed(field: Field) -> None:
    """A source may send bytes twice, and others the second time: what was hashed is what is kept."""
    again = [Piece(0, bytes(100_000)), Piece(900_000, bytes(200_000))]
    pieces = [*in_order(DATA[:2_000_000]), *again]
    pieces += [Piece(o + 2_000_000, data) for o, data in in_order(DATA[2_000_000:])]
    assert await everything(field.join_from(Pieces(pieces, len(DATA)))) == DATA
    await until(lambda: not field.downloads.all())
    file = field.store.open(DIGEST)
    assert file is not None
    assert file.read(0, file.size) == DATA
    file.close()


async def test_an_empty_blob(field: Field) -> None:
    empty = Digest(sha256(b""))
    assert await everything(field.join_from(Pieces([], 0), empty)) == b""
    await until(lambda: not field.downloads.all())


async def test_a_fast_body_waits_for_the_disk(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No more than two megabytes are in memory, however fast the source and slow the disk."""
    free, write = threading.Event(), DiskSpool.write

    def slow(spool: DiskSpool, data: bytes, offset: int) -> None:
        free.wait(30)
        write(spool, data, offset)

    monkeypatch.setattr(DiskSpool, "write", slow)
    reader = field.join()
    source = field.sources[0]
    await until(lambda: source.given > STEP)
    for _ in range(50):
        await asyncio.sleep(0.001)
    assert source.given <= MAX_WAITING + 65536
    free.set()
    assert await everything(reader) == DATA


async def test_a_slow_reader_holds_up_neither_download_nor_others(field: Field) -> None:
    slow = field.join()
    chunks = read(slow, 0, None)
    await anext(chunks)
    assert await everything(field.join()) == DATA
    await until(lambda: not field.downloads.all())
    rest: Callable[[], Awaitable[bytes]] = chunks.__anext__
    assert len(await rest()) > 0
    await chunks.aclose()
    slow.close()


async def test_closing_cancels_and_says_so(field: Field) -> None:
    field.gate.clear()
    waiting = asyncio.create_task(everything(field.join()))
    await asyncio.sleep(0.01)
    await field.downloads.close()
    with pytest.raises(UpstreamUnavailable, match="cancelled"):
        await waiting


@pytest.mark.parametrize(("holds_at", "goes_on"), [(1_000_000, False), (2_000_000, True)])
async def test_a_download_that_all_readers_have_left_is_dropped_if_hardly_begun(
    tmp_path: Path, holds_at: int, goes_on: bool
) -> None:
    async with opened(tmp_path, Clock(), **LARGE) as held:
        field = Field(held, min_complete=0.5)
        field.gate.clear()
        reader = field.join(holds_at=holds_at)
        await reader.download.opened()
        await reader.readable(holds_at - 100_000)
        reader.close()
        if goes_on:
            await asyncio.sleep(0.01)
            assert field.downloads.all()
        else:
            await until(lambda: not field.downloads.all())
        field.gate.set()
        assert await everything(field.join()) == DATA
        await field.downloads.close()
        assert field.bodies == (1 if goes_on else 2)


async def test_a_dropped_download_leaves_its_successor_to_be_joined(field: Field) -> None:
    field.gate.clear()
    dropped = field.join()
    await until(lambda: field.bodies == 1)
    field.downloads.abandon(dropped)
    successor = field.join()
    await until(lambda: dropped.download.failure is not None)
    assert field.downloads.live(TARGET, DIGEST) is successor.download
    joined = field.join()
    assert (joined.download, joined.is_first) == (successor.download, False)
    field.gate.set()
    assert await asyncio.gather(everything(successor), everything(joined)) == [DATA, DATA]
    assert field.bodies == 2


async def test_t47_a_download_is_joined_by_its_own_upstream_only(field: Field) -> None:
    field.gate.clear()
    own = field.join()
    source = Pieces([], None)
    source.refusal, source.gate = UpstreamUnavailable("another upstream failed"), field.gate
    other = Target("ghcr.io", TARGET.repo)
    foreign = field.join_from(source, target=other)
    assert foreign.is_first
    assert len(field.downloads.all()) == 2
    assert field.downloads.live(other, DIGEST) is foreign.download
    joined = field.join()
    assert joined.download is own.download
    joined.close()
    field.gate.set()
    with pytest.raises(UpstreamUnavailable, match="another upstream"):
        await everything(foreign)
    assert await everything(own) == DATA


async def test_t50_room_is_wanted_for_bytes_that_have_come_not_for_where_they_belong(
    field: Field, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = blob(20 * 1024 * 1024)
    piece, middle = 64 * 1024, len(far) // 2
    starts = [start for at in range(0, middle, piece) for start in (at, middle + at)]
    source = Pieces([Piece(at, far[at : at + piece]) for at in starts], len(far))
    grow, wanted, taken = BodyReservation.grow, list[int](), list[int]()

    async def watched(room: BodyReservation, size: int) -> None:
        wanted.append(size)
        assert size <= source.given + 4 * 4096
        await grow(room, size)
        reader_fd = reader.fd
        assert reader_fd is not None
        taken.append(os.fstat(reader_fd).st_blocks * 512)

    reader = field.join_from(source, sha256(far))
    await reader.download.opened()
    monkeypatch.setattr(BodyReservation, "grow", watched)
    assert await everything(reader) == far
    assert len(taken) > 100
    assert all(used <= most for used, most in zip(taken, wanted, strict=True))


async def test_the_last_reader_of_a_failed_download_gives_its_room_back(field: Field) -> None:
    field.gate.clear()
    readers = [field.join(breaks_at=1_000_000, holds_at=500_000) for _ in range(2)]
    await readers[0].download.opened()
    await readers[0].readable(0)
    field.gate.set()
    await until(lambda: readers[0].download.failure is not None)
    readers[0].close()
    assert field.held.evictor.used > 0
    readers[1].close()
    assert field.held.evictor.used == 0


async def test_a_download_that_is_cancelled_before_it_begins_tells_its_readers(
    field: Field,
) -> None:
    reader = field.join()
    await field.downloads.close()
    async with asyncio.timeout(30):
        with pytest.raises(UpstreamUnavailable):
            await reader.download.opened()
    reader.close()
    assert not field.downloads.all()
