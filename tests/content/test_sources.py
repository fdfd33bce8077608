"""The contract of every source. A new one is added to the list."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Final

import pytest

from proxy.content.downloads import Downloads
from proxy.content.fetching import Fetch, SourcesBody
from proxy.core.errors import ContentMismatch, NotFound, UpstreamFailure, UpstreamUnavailable
from proxy.core.names import Digest, Repo, Target, sha256
from proxy.core.sources import Body, Piece, Place, Priority
from tests.content.replica_stages import KINDS, replica_stage
from tests.content.stages import (
    DATA,
    IMAGE,
    LAYER,
    OTHERS,
    SIZE,
    TARGET,
    Bucket,
    Directory,
    Registry,
    Stage,
    WithoutLengths,
)
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.held import opened
from tests.running import Start, until

NOWHERE = sha256(b"nobody has this")
BACKENDS: Final = ("registry", "registry without lengths", "directory", "bucket", *KINDS)


@pytest.fixture(params=BACKENDS)
async def stage(
    request: pytest.FixtureRequest,
    upstream: FakeUpstream,
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Stage]:
    upstream.add("library/app", IMAGE)
    upstream.add("org/else", OTHERS, "1")
    if request.param in KINDS:
        async with replica_stage(request.param, upstream, tmp_path, monkeypatch) as staged:
            yield staged
    elif request.param == "directory":
        yield Directory(tmp_path / "carried in", monkeypatch)
    elif request.param == "bucket":
        yield Bucket(request.getfixturevalue("bucket"), monkeypatch)
    else:
        yield await _registry(request.param, upstream, start)


async def _registry(kind: str, upstream: FakeUpstream, start: Start) -> Stage:
    proxy = await start()
    source = proxy.app.admin._upstreams["docker.io"]
    return Registry(source, upstream) if kind == "registry" else WithoutLengths(source, upstream)


async def joined(body: Body, offset: int = 0) -> bytes:
    """Return the bytes of a body, each of which comes once."""
    async with aclosing(body), aclosing(body.pieces()) as given:
        pieces = sorted([piece async for piece in given])
    for at, data in pieces:
        assert at == offset
        offset += len(data)
    return b"".join(data for _, data in pieces)


def left_open() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


@pytest.mark.parametrize("priority", Priority)
@pytest.mark.parametrize("offset", [0, 1, 1_234_567, SIZE - 1])
async def test_a_body_from_any_offset(stage: Stage, offset: int, priority: Priority) -> None:
    body = await stage.source.open(TARGET, LAYER, offset, priority)
    if stage.knows_sizes:
        assert body.size == SIZE
    assert await joined(body, offset) == DATA[offset:]


async def test_a_body_that_is_passed_through_comes_in_order(stage: Stage) -> None:
    body = await stage.source.open(TARGET, LAYER, 7, Priority.PASS_THROUGH)
    at = 7
    async with aclosing(body), aclosing(body.pieces()) as pieces:
        async for offset, data in pieces:
            assert offset == at
            at += len(data)
    assert at == SIZE


async def test_the_size_of_a_blob(stage: Stage) -> None:
    if not stage.is_proof:
        with pytest.raises(NotFound):
            await stage.source.blob_size(TARGET, LAYER)
        return
    size = await stage.source.blob_size(TARGET, LAYER)
    assert size == (SIZE if stage.knows_sizes else None)


@pytest.mark.parametrize(
    "digest", [NOWHERE, Digest(OTHERS.layers[0])], ids=["nowhere", "of another repository"]
)
async def test_what_the_repository_does_not_hold_is_not_found(stage: Stage, digest: Digest) -> None:
    with pytest.raises(NotFound):
        await stage.source.open(TARGET, digest, 0, Priority.DOWNLOAD)
    with pytest.raises(NotFound):
        await stage.source.blob_size(TARGET, digest)


async def test_t02_wrong_bytes_are_never_kept(stage: Stage, tmp_path: Path) -> None:
    stage.spoil()
    async with opened(tmp_path / "own", Clock(), max_size=1 << 30, unproven_share=1.0) as held:
        downloads = Downloads(held.content)
        reader = downloads.join(Fetch(TARGET, LAYER, [stage.source]))
        with pytest.raises(ContentMismatch):
            await reader.download.proven()
        reader.close()
        await downloads.close()
        assert not await held.on_disk()
        assert held.counters.mismatches == 1


async def test_a_body_that_breaks_off_says_so(stage: Stage) -> None:
    stage.break_at(1_000_000)
    got = bytearray()

    async def read() -> None:
        body = await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)
        async with aclosing(body), aclosing(body.pieces()) as pieces:
            async for offset, data in pieces:
                assert offset == len(got)
                got.extend(data)

    with pytest.raises(UpstreamFailure):
        await read()
    assert got == DATA[: len(got)]
    assert len(got) <= 1_000_000


async def test_a_cancelled_reader_leaves_nothing_open(stage: Stage) -> None:
    body = await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)
    before = asyncio.all_tasks()
    begun = asyncio.Event()

    async def read() -> None:
        async with aclosing(body), aclosing(body.pieces()) as pieces:
            async for _ in pieces:
                begun.set()
                await asyncio.sleep(60)

    reading = asyncio.create_task(read())
    await begun.wait()
    open_before = left_open()
    reading.cancel()
    await asyncio.wait([reading])
    assert reading.cancelled()
    await until(lambda: left_open() <= open_before)  # the fake's side of a connection ends later
    assert not {task for task in asyncio.all_tasks() - before if "worker" in task.get_name()}


async def test_closing_twice_does_nothing(stage: Stage) -> None:
    body = await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)
    await body.aclose()
    await body.aclose()
    assert await joined(await stage.source.open(TARGET, LAYER, 0, Priority.DOWNLOAD)) == DATA


class Second(Stage):
    """A source that notes from where it was asked to go on."""

    is_public = is_confirmed = True
    place = Place.PEER

    def __init__(self, size: int | None = SIZE) -> None:
        self.size = size
        self.asked: list[int] = []

    async def open(self, _target: Target, _digest: Digest, offset: int, _: Priority) -> "Second":
        self.asked.append(offset)
        return self

    async def pieces(self):  # type: ignore[no-untyped-def]
        yield Piece(self.asked[-1], DATA[self.asked[-1] :])

    async def aclose(self) -> None:
        return


async def test_a_body_that_breaks_off_goes_on_from_the_next_byte_of_the_next_source(
    stage: Stage,
) -> None:
    stage.break_at(1_000_000)
    second = Second()
    body = await SourcesBody.opened(Fetch(TARGET, LAYER, [stage.source, second], SIZE))
    assert not second.asked
    assert await joined(body) == DATA
    assert len(second.asked) == 1
    assert 0 <= second.asked[0] <= 1_000_000
    assert second.asked[0] > 0 or not isinstance(stage, Directory | Bucket)


async def test_a_source_without_the_blob_is_passed_over(stage: Stage) -> None:
    target = Target("docker.io", Repo("org/else"))
    body = await SourcesBody.opened(Fetch(target, LAYER, [stage.source, Second()]))
    assert await joined(body) == DATA
    assert body.is_public, "what the first one did not give does not count"


async def test_a_source_that_has_another_size_is_not_gone_on_with(stage: Stage) -> None:
    stage.break_at(1_000_000)
    body = await SourcesBody.opened(Fetch(TARGET, LAYER, [stage.source, Second(SIZE + 1)], SIZE))
    with pytest.raises(UpstreamUnavailable):
        await joined(body)


async def test_without_a_source_nothing_is_found() -> None:
    with pytest.raises(NotFound):
        await SourcesBody.opened(Fetch(TARGET, LAYER, []))
