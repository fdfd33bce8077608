"""One large blob over several connections: every byte once, whatever one of them runs into."""

import asyncio
import re
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import ClientPayloadError

from proxy.core.errors import StorageError
from proxy.storage.disk import DiskSpool
from tests.fakes import content, faults
from tests.fakes.records import Record
from tests.fakes.upstream import FakeUpstream
from tests.leaks import at_rest, nothing_left, opened, working
from tests.running import Proxy, Start, until

SIZE = 3_000_000
BIG = content.image(3, layers=(SIZE,))
[LAYER] = BIG.layers
DATA = BIG.blobs[LAYER]
PATH = f"/v2/app/blobs/{LAYER}"
SMALL = content.image(4, layers=(1000,))
OTHER = f"/v2/app/blobs/{SMALL.layers[0]}"
RATE = 3_000_000
PIECES = {"connections": 4, "min_blob_size": 800_000}


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", BIG)
    upstream.add("library/app", SMALL, "small")


async def parallel(start: Start, upstream: FakeUpstream, **changes: Any) -> Proxy:
    """Return a proxy whose upstream gives each connection so much and no more."""
    upstream.fault(faults.slow(RATE), kind="blob", reference=LAYER)
    upstream.fault(faults.slow(RATE), kind="data", reference=LAYER)
    return await start(**{"patience": {}, "parallel": PIECES, **changes})


def asked(upstream: FakeUpstream) -> list[Record]:
    """Return the requests for the large blob, wherever its bytes come from."""
    everything = [*upstream.requests, *upstream.cdn_requests]
    return [r for r in everything if r.reference == LAYER and r.method == "GET"]


def ranges(upstream: FakeUpstream) -> list[tuple[int, int]]:
    """Return the first byte and the end of each part that was sent, in the blob's order."""
    parts = []
    for record in asked(upstream):
        if record.status == 206:
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", record.headers["Range"])
            assert match is not None
            parts.append((int(match[1]), int(match[2] or SIZE - 1) + 1))
    return sorted(parts)


def received(proxy: Proxy) -> int:
    count: int = proxy.numbers["bytes_from_upstream"]
    return count


async def test_a_large_blob_comes_over_several_connections_and_every_byte_once(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await parallel(start, upstream)
    most = 0

    async def watch() -> None:
        nonlocal most
        while True:
            most = max(most, sum(record.outcome == "open" for record in asked(upstream)))
            await asyncio.sleep(0.002)

    watching = asyncio.create_task(watch())
    answer = await proxy.get(PATH)
    watching.cancel()
    assert answer.body == DATA
    assert most == 4
    assert received(proxy) == SIZE
    assert "resuming" not in proxy.log.getvalue()
    parts = ranges(upstream)
    assert len(parts) >= 6
    assert parts[-1][1] == SIZE
    assert all(end == start for (_, end), (start, _) in pairwise(parts))
    await proxy.settled()
    assert proxy.held() == {LAYER}
    assert (await proxy.get(PATH)).body == DATA
    assert received(proxy) == SIZE


@pytest.mark.parametrize("connections", [1, 4])
async def test_what_is_small_or_forbidden_comes_over_one_connection(
    start: Start, upstream: FakeUpstream, connections: int
) -> None:
    pieces = {"connections": connections, "min_blob_size": SIZE + 1 if connections > 1 else 1}
    proxy = await parallel(start, upstream, parallel=pieces)
    assert (await proxy.get(PATH)).body == DATA
    assert len(asked(upstream)) == 1


async def test_a_connection_that_is_fast_gets_no_company(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("proxy.upstream.body.FAST", 1)
    proxy = await parallel(start, upstream)
    assert (await proxy.get(PATH)).body == DATA
    assert len(asked(upstream)) == 1


async def test_an_announced_size_is_needed(start: Start, upstream: FakeUpstream) -> None:
    upstream.fault(faults.chunked(), kind="blob", reference=LAYER)
    proxy = await parallel(start, upstream)
    assert (await proxy.get(PATH)).body == DATA
    assert len(asked(upstream)) == 1


REFUSALS = {
    "says that it gives none": faults.header("Accept-Ranges", "none"),
    "does not say that it gives any": faults.header("Accept-Ranges", None),
    "answers with everything": faults.to_ranges(faults.no_ranges()),
    "answers with another range": faults.to_ranges(faults.content_range(f"bytes 0-9/{SIZE}")),
    "answers with another size": faults.to_ranges(faults.content_range("bytes 0-9/10")),
    "answers with nonsense": faults.to_ranges(faults.content_range("some of it")),
    "answers with 416": faults.to_ranges(faults.status(416)),
    "answers with 403": faults.to_ranges(faults.status(403)),
    "answers with 404": faults.to_ranges(faults.status(404)),
    "limits the rate": faults.to_ranges(faults.status(429, retry_after=60)),
    "is too busy": faults.to_ranges(faults.status(503)),
    "hangs up": faults.to_ranges(faults.hang_up(reset=True)),
}


@pytest.mark.parametrize("refusal", REFUSALS.values(), ids=REFUSALS)
async def test_an_upstream_that_gives_no_ranges_is_asked_for_one_and_gives_all_on_the_first(
    start: Start, upstream: FakeUpstream, refusal: faults.Effect
) -> None:
    upstream.fault(refusal, kind="blob", reference=LAYER)
    proxy = await parallel(start, upstream)
    answer = await proxy.get(PATH)
    assert (answer.status, answer.body) == (200, DATA)
    await upstream.until(lambda: asked(upstream)[0].outcome == "whole")
    assert len(asked(upstream)) <= 3, "a connection that was hung up on may be tried again"
    assert received(proxy) <= SIZE + 1000, "what it says in refusing is read"
    assert (await proxy.get(OTHER)).status == 200, "no other blob suffers for it"
    assert proxy.numbers["errors"] == {}


LATER = {name: REFUSALS[name] for name in list(REFUSALS)[2:]}


@pytest.mark.parametrize("refusal", LATER.values(), ids=LATER)
async def test_ranges_that_are_refused_later_fail_nobody(
    start: Start, upstream: FakeUpstream, refusal: faults.Effect
) -> None:
    upstream.fault(refusal, kind="blob", reference=LAYER, after=3, times=8)
    proxy = await parallel(start, upstream)
    assert (await proxy.get(PATH)).body == DATA
    assert (await proxy.get(OTHER)).status == 200
    assert proxy.stats["cache"]["content_mismatches"] == 0


async def test_every_piece_that_breaks_off_goes_on_from_its_last_byte(
    start: Start, upstream: FakeUpstream
) -> None:
    broken = faults.truncate(60_000, reset=False)
    upstream.fault(faults.to_ranges(broken), kind="blob", reference=LAYER, times=8)
    proxy = await parallel(start, upstream)
    assert (await proxy.get(PATH)).body == DATA
    assert sum(record.outcome == "cut" for record in asked(upstream)) >= 4
    assert "fewer connections" not in proxy.log.getvalue()
    assert received(proxy) == SIZE


async def test_the_first_connection_may_break_off_too(start: Start, upstream: FakeUpstream) -> None:
    upstream.fault(faults.truncate(300_000), kind="blob", reference=LAYER, times=1)
    proxy = await parallel(start, upstream)
    assert (await proxy.get(PATH)).body == DATA
    assert received(proxy) == SIZE


async def test_a_piece_that_stalls_is_asked_for_again(start: Start, upstream: FakeUpstream) -> None:
    proxy = await parallel(start, upstream, timeouts={"idle": "300ms"})
    release = asyncio.Event()
    stalled = faults.to_ranges(faults.stall(60_000, release))
    upstream.fault(stalled, kind="blob", reference=LAYER, times=2)
    assert (await proxy.get(PATH)).body == DATA
    assert received(proxy) == SIZE
    release.set()


async def test_tokens_and_signed_redirects_that_end_meanwhile_are_renewed(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.behaviour.redirects.add("blob")
    upstream.behaviour.signature_ttl = 0.2
    proxy = await parallel(start, upstream)
    asking = asyncio.create_task(proxy.get(PATH))
    await upstream.until(lambda: len(ranges(upstream)) >= 3)
    upstream.revoke_tokens()
    assert (await asking).body == DATA
    assert len(upstream.token_requests) >= 2
    assert received(proxy) < SIZE + 20_000, "refusals, and no byte of the blob twice"


@pytest.mark.parametrize("at", [0, 60_000])
async def test_wrong_bytes_in_one_piece_are_never_delivered_whole_nor_kept(
    start: Start, upstream: FakeUpstream, at: int
) -> None:
    wrong = content.blob(SIZE, "another")
    spoilt = faults.to_ranges(faults.body(wrong))
    upstream.fault(spoilt, kind="blob", reference=LAYER, after=2, times=1)
    proxy = await parallel(start, upstream)
    with pytest.raises(ClientPayloadError):
        await proxy.get(PATH)
    await proxy.settled()
    assert proxy.stats["cache"]["content_mismatches"] == 1
    assert proxy.held() == set()
    assert not proxy.spooled()
    assert (await proxy.get(PATH)).body == DATA


async def test_ranges_behind_the_contiguous_part_are_sent_when_it_gets_there(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await parallel(start, upstream)
    whole = asyncio.create_task(proxy.get(PATH))
    await upstream.until(lambda: bool(ranges(upstream)))
    spans = [(2_900_000, 2_999_999), (1_000_000, 1_500_000), (0, 10)]
    parts = await asyncio.gather(
        *(proxy.get(PATH, Range=f"bytes={first}-{last}") for first, last in spans)
    )
    for (first, last), part in zip(spans, parts, strict=True):
        assert (part.status, part.body) == (206, DATA[first : last + 1])
    assert (await whole).body == DATA
    assert received(proxy) == SIZE


async def test_a_download_gets_the_place_of_a_helper_at_once(
    start: Start, upstream: FakeUpstream
) -> None:
    release = asyncio.Event()
    stalled = faults.to_ranges(faults.stall(1000, release))
    upstream.fault(stalled, kind="blob", reference=LAYER, times=2)
    proxy = await parallel(start, upstream, hub={"max_downloads": 3})
    whole = asyncio.create_task(proxy.get(PATH))
    await upstream.until(
        lambda: sum(r.sent >= 1000 and r.status == 206 for r in asked(upstream)) == 2
    )
    began = len(asked(upstream))
    assert (await proxy.get(OTHER)).status == 200
    assert len(asked(upstream)) == began
    await upstream.until(
        lambda: [r.outcome for r in asked(upstream) if r.status == 206].count("dropped") == 1
    )
    release.set()
    assert (await whole).body == DATA
    assert received(proxy) <= SIZE + 1000 + 500_000, "what a helper had in hand"


async def test_helpers_give_their_places_back(start: Start, upstream: FakeUpstream) -> None:
    proxy = await parallel(start, upstream, hub={"max_downloads": 4})
    assert (await proxy.get(PATH)).body == DATA
    upstream.clear()
    upstream.fault(faults.slow(RATE), kind="blob")
    second = upstream.add_blob("library/app", content.blob(SIZE, "second"))
    assert (await proxy.get(f"/v2/app/blobs/{second}")).status == 200
    assert sum("Range" in record.headers for record in upstream.requests) >= 6


async def test_a_helper_that_goes_leaves_nothing_to_be_resumed(
    start: Start, upstream: FakeUpstream
) -> None:
    """The first connection then goes on behind its own last piece, with a request of its own."""
    limited = faults.to_ranges(faults.status(429, retry_after=60))
    upstream.fault(limited, kind="blob", reference=LAYER, after=4, times=1)
    proxy = await parallel(start, upstream, parallel={"connections": 2, "min_blob_size": 800_000})
    assert (await proxy.get(PATH)).body == DATA
    assert "resuming" not in proxy.log.getvalue()


async def test_helpers_take_no_place_that_is_in_use(start: Start, upstream: FakeUpstream) -> None:
    proxy = await parallel(start, upstream, hub={"max_downloads": 1})
    assert (await proxy.get(PATH)).body == DATA
    assert len(asked(upstream)) == 1


async def test_a_download_that_its_only_reader_has_left_is_finished(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await parallel(start, upstream)
    before = working()
    response = await proxy.client.get(PATH)
    await response.content.readexactly(1000)
    response.close()
    await until(lambda: proxy.held() == {LAYER})
    await at_rest(proxy, before)
    assert received(proxy) == SIZE


async def test_a_download_that_is_dropped_leaves_nothing(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await parallel(start, upstream, storage={"min_complete_ratio": 1.0})
    before = working()
    response = await proxy.client.get(PATH)
    await upstream.until(lambda: sum(r.outcome == "open" for r in asked(upstream)) == 4)
    response.close()
    await at_rest(proxy, before)
    await upstream.until(lambda: all(r.outcome != "open" for r in asked(upstream)))
    assert proxy.held() == set()


async def test_a_shutdown_in_the_middle_leaves_nothing(
    start: Start, upstream: FakeUpstream
) -> None:
    async with nothing_left():
        proxy = await parallel(start, upstream, shutdown_grace="100ms")
        response = await proxy.client.get(PATH)
        await upstream.until(lambda: sum(r.outcome == "open" for r in asked(upstream)) == 4)
        await proxy.close()
        response.close()
    assert not opened(proxy)
    assert not proxy.spooled()


async def test_a_disk_that_fails_under_one_piece_fails_no_reader(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = DiskSpool.write

    def full(spool: DiskSpool, data: bytes, offset: int) -> None:
        if offset > 1_000_000:
            raise StorageError("writing to the spool: no space left on device")
        write(spool, data, offset)

    monkeypatch.setattr(DiskSpool, "write", full)
    proxy = await parallel(start, upstream)
    before = working()
    assert (await proxy.get(PATH)).body == DATA
    await at_rest(proxy, before)
    assert proxy.held() == set()
