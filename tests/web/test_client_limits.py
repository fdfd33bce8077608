"""Limits for each client over HTTP: one greedy client, others that notice nothing, and 429."""

import asyncio
import functools
import os
import re
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, UnixConnector

from proxy.access import limits
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.web.test_audit import prepared

MB = 1_000_000
IMAGE = content.image(1, layers=(4 * MB,))
OTHER = content.image(2, layers=(3 * MB,))
[LAYER], [OTHER_LAYER] = IMAGE.layers, OTHER.layers
BLOB = f"/v2/library/app/blobs/{LAYER}"
OTHER_BLOB = f"/v2/library/app/blobs/{OTHER_LAYER}"
MANIFEST = "/v2/library/app/manifests/latest"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.add("library/app", OTHER, tags=["other"])


@asynccontextmanager
async def client_at(proxy: Proxy, address: str) -> AsyncIterator[ClientSession]:
    """A client that connects from another address of this machine."""
    connector = TCPConnector(local_addr=(address, 0), limit=0)
    async with ClientSession(f"http://{proxy.app.address}", connector=connector) as session:
        yield session


async def pull(client: ClientSession, path: str) -> tuple[int, int]:
    """Return status and length of an answer."""
    async with client.get(path) as answer:
        return answer.status, len(await answer.read())


async def warm(proxy: Proxy, *paths: str) -> None:
    """Let another client fetch content, so that it is held."""
    async with client_at(proxy, "127.0.0.9") as client:
        for path in paths:
            assert (await pull(client, path))[0] == 200
    await proxy.settled()


async def test_bytes_of_a_greedy_client_are_limited_and_others_notice_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    real = os.sendfile

    def counting(to: int, fd: int, offset: int, size: int) -> int:
        sizes.append(size)
        return real(to, fd, offset, size)

    monkeypatch.setattr(os, "sendfile", counting)
    proxy = await start(access={"limits": {"bytes_per_second": "4MB/s"}})
    await warm(proxy, BLOB, OTHER_BLOB)
    sizes.clear()
    async with client_at(proxy, "127.0.0.2") as greedy, client_at(proxy, "127.0.0.3") as modest:
        began = time.monotonic()
        transfers = [asyncio.create_task(pull(greedy, BLOB)) for _ in range(4)]
        assert await pull(modest, OTHER_BLOB) == (200, 3 * MB)
        assert not any(transfer.done() for transfer in transfers), "16 MB at 4 MB/s"
        assert await asyncio.gather(*transfers) == [(200, 4 * MB)] * 4
        seconds = time.monotonic() - began
    assert 3 * 0.8 <= seconds <= 3 * 1.2 + 20, "4 MB at once, 12 MB in 3 seconds; or a slow machine"
    assert sizes, "it is sent by sendfile, in small pieces"
    assert max(sizes) <= 4 * MB // limits.PIECES_PER_SECOND
    assert "millpond_limit_delays_total" in (await proxy.get("/metrics")).body.decode()


async def test_transfers_of_one_client_end_together(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = await start(access={"limits": {"bytes_per_second": "5MB/s"}})
    await warm(proxy, BLOB)
    taken: Counter[asyncio.Task[Any] | None] = Counter()
    others: list[int] = []
    turn, refund = limits.Client.acquire, limits.Client.refund

    async def counted(self: limits.Client, most: int) -> int:
        size = await turn(self, most)
        taken[asyncio.current_task()] += size
        if taken[asyncio.current_task()] >= 4 * MB:
            others.append(min(taken.values()))
        return size

    def given_back(self: limits.Client, size: int) -> None:
        taken[asyncio.current_task()] -= size
        refund(self, size)

    monkeypatch.setattr(limits.Client, "acquire", counted)
    monkeypatch.setattr(limits.Client, "refund", given_back)
    async with client_at(proxy, "127.0.0.2") as client:
        pulls = [pull(client, BLOB) for _ in range(3)]
        assert await asyncio.gather(*pulls) == [(200, 4 * MB)] * 3
    assert len(taken) == 3
    assert others[0] > 3.5 * MB, "when the first has its bytes, the others have almost all"


async def test_a_throttled_reader_slows_neither_the_download_nor_other_readers(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(access={"limits": {"bytes_per_second": "3MB/s"}})
    release = upstream.stall(100_000, kind="blob", reference=OTHER_LAYER)
    async with client_at(proxy, "127.0.0.2") as greedy, client_at(proxy, "127.0.0.3") as modest:
        first = asyncio.create_task(pull(greedy, BLOB))
        await until(lambda: proxy.stats["clients"] and proxy.stats["clients"][0]["waiting"] > 0)
        slow = asyncio.create_task(pull(greedy, OTHER_BLOB))
        fast = asyncio.create_task(pull(modest, OTHER_BLOB))
        await until(lambda: bool(upstream.bodies(OTHER_LAYER)))
        release.set()
        assert await fast == (200, 3 * MB)
        await until(lambda: OTHER_LAYER in proxy.held())
        assert not slow.done()
        assert await slow == (200, 3 * MB)
        assert await first == (200, 4 * MB)
    assert upstream.bodies(OTHER_LAYER) == 1


def read_all(connection: socket.socket) -> None:
    connection.settimeout(60)
    while connection.recv(1 << 20):
        pass


async def test_a_slow_reader_uses_up_only_what_its_socket_takes(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gives back the rest, so that it holds up no other transfer of its client."""
    proxy = await start(access={"limits": {"bytes_per_second": "100MB/s"}})
    await warm(proxy, BLOB)
    turns: list[int] = []
    turn, refund = limits.Client.acquire, limits.Client.refund

    async def taken(self: limits.Client, most: int) -> int:
        size = await turn(self, most)
        turns.append(size)
        return size

    def given_back(self: limits.Client, size: int) -> None:
        turns.append(-size)
        refund(self, size)

    monkeypatch.setattr(limits.Client, "acquire", taken)
    monkeypatch.setattr(limits.Client, "refund", given_back)
    assert proxy.app.address is not None
    host, _, port = proxy.app.address.rpartition(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"GET {BLOB} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        await until(lambda: any(size < 0 for size in turns))
        await asyncio.to_thread(read_all, slow)
    await until(lambda: proxy.stats["clients"][0]["downloads"] == 0)
    assert sum(turns) == 4 * MB


async def test_manifests_wait_for_bytes_too(start: Start) -> None:
    proxy = await start(access={"limits": {"bytes_per_second": 2048}})
    await warm(proxy, MANIFEST)
    async with client_at(proxy, "127.0.0.2") as client:
        began = time.monotonic()
        while time.monotonic() - began < 1:
            assert (await pull(client, MANIFEST))[0] == 200
        shown = next(e for e in proxy.stats["clients"] if e["client"] == "127.0.0.2")
    assert shown["bytes"] <= 2048 * (time.monotonic() - began + 1) + len(IMAGE.manifest)
    assert shown["delayed"] > 0


async def test_requests_are_delayed_in_order_and_not_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    still = functools.partial(limits.ClientLimits, now=clock)  # while they ask
    monkeypatch.setattr("proxy.app.serving.ClientLimits", still)
    proxy = await start(access={"limits": {"requests_per_second": 10}})
    await warm(proxy, MANIFEST)
    order: list[int] = []

    def seen(client: str) -> dict[str, Any]:
        shown: list[dict[str, Any]] = proxy.stats["clients"]
        return next((entry for entry in shown if entry["client"] == client), {"requests": 0})

    async def ask(client: ClientSession, number: int) -> None:
        assert (await pull(client, MANIFEST))[0] == 200
        order.append(number)

    async with client_at(proxy, "127.0.0.2") as greedy, client_at(proxy, "127.0.0.3") as modest:
        began = time.monotonic()
        tasks = []
        for number in range(40):
            tasks.append(asyncio.create_task(ask(greedy, number)))
            await until(lambda: seen("127.0.0.2")["requests"] == len(tasks))
        await ask(modest, -1)
        assert len(order) < 40, "it did not wait for the others"
        await asyncio.gather(*tasks)
        assert time.monotonic() - began >= 1.8, "20 at once, 20 in 2 seconds"
    late = [number for number in order if number >= 30]
    assert late == sorted(late)
    assert seen("127.0.0.2")["requests"] == 40
    assert seen("127.0.0.2")["delayed"] == 20
    assert seen("127.0.0.3")["delayed"] == 0


@pytest.mark.one_process
async def test_repeated_requests_of_one_connection_have_the_same_limit(start: Start) -> None:
    """The response cache answers them, until they have to wait."""
    proxy = await start(access={"limits": {"requests_per_second": 10}})
    await warm(proxy, MANIFEST)
    async with client_at(proxy, "127.0.0.2") as client:
        began = time.monotonic()
        for _ in range(40):
            assert (await pull(client, MANIFEST))[0] == 200
        assert time.monotonic() - began >= 1.8
    metrics = (await proxy.get("/metrics")).body.decode()
    found = re.search(r"^millpond_prepared_answers_total (\S+)$", metrics, re.MULTILINE)
    assert found is not None
    assert float(found[1]) > 10
    name = re.escape('millpond_access_decisions_total{outcome="allowed"}')
    counted = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
    assert counted is not None
    assert float(counted[1]) == 1 + 40 + 1, "one for each request, also if it waited"


async def test_beyond_the_longest_wait_requests_are_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WAIT", 0.3)
    proxy = await start(access={"limits": {"requests_per_second": 5}})
    async with client_at(proxy, "127.0.0.2") as greedy, client_at(proxy, "127.0.0.3") as modest:
        answers = await asyncio.gather(*(greedy.get(MANIFEST) for _ in range(30)))
        assert {answer.status for answer in answers} == {200, 429}
        refused = next(answer for answer in answers if answer.status == 429)
        assert int(refused.headers["Retry-After"]) >= 1
        assert (await refused.json())["errors"][0]["code"] == "TOOMANYREQUESTS"
        assert (await pull(modest, "/v2/"))[0] == 200
    assert proxy.log.getvalue().count("client limited") == 1


async def test_downloads_wait_for_each_other_and_nothing_else_does(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(access={"limits": {"downloads": 1}})
    await warm(proxy, OTHER_BLOB, MANIFEST)
    release = upstream.stall(100_000, kind="blob", reference=LAYER)
    async with client_at(proxy, "127.0.0.2") as greedy, client_at(proxy, "127.0.0.3") as modest:
        first = asyncio.create_task(pull(greedy, BLOB))
        await until(lambda: bool(upstream.bodies(LAYER)))
        second = asyncio.create_task(pull(greedy, OTHER_BLOB))
        await until(lambda: any(entry["waiting"] for entry in proxy.stats["clients"]))
        assert (await pull(greedy, MANIFEST))[0] == 200
        async with greedy.head(OTHER_BLOB) as answer:
            assert answer.status == 200
        assert await pull(modest, OTHER_BLOB) == (200, 3 * MB)
        assert not second.done()
        release.set()
        assert await first == (200, 4 * MB)
        assert await second == (200, 3 * MB)
    await until(lambda: [entry["downloads"] for entry in proxy.stats["clients"]] == [0, 0, 0])


async def test_a_download_that_waits_for_too_long_is_refused(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WAIT", 0.2)
    proxy = await start(access={"limits": {"downloads": 1}})
    release = upstream.stall(100_000, kind="blob", reference=LAYER)
    async with client_at(proxy, "127.0.0.2") as greedy:
        first = asyncio.create_task(pull(greedy, BLOB))
        await until(lambda: bool(upstream.bodies(LAYER)))
        assert (await pull(greedy, OTHER_BLOB))[0] == 429
        assert not upstream.bodies(OTHER_LAYER), "it is refused before anything is fetched"
        release.set()
        assert (await first)[0] == 200
        await until(lambda: proxy.stats["clients"][0]["downloads"] == 0)
        assert (await pull(greedy, OTHER_BLOB))[0] == 200


async def test_clients_that_leave_make_room(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(access={"limits": {"downloads": 1, "bytes_per_second": "1MB/s"}})
    release = upstream.stall(100_000, kind="blob", reference=LAYER)
    async with client_at(proxy, "127.0.0.2") as greedy:
        first = asyncio.create_task(pull(greedy, BLOB))
        await until(lambda: bool(upstream.bodies(LAYER)))
        waiting = [asyncio.create_task(pull(greedy, OTHER_BLOB)) for _ in range(5)]
        await until(lambda: bool(proxy.stats["clients"][0]["waiting"] == 5))
        for task in (*waiting, first):
            task.cancel()
        await asyncio.wait([*waiting, first])
        await until(lambda: proxy.stats["clients"][0]["waiting"] == 0)
        await until(lambda: proxy.stats["clients"][0]["downloads"] == 0)
        release.set()
        assert (await pull(greedy, OTHER_BLOB))[0] == 200


async def test_only_the_operator_sees_who_the_clients_are(start: Start) -> None:
    proxy = await start(access={"limits": {"downloads": 5}})
    await warm(proxy, BLOB)
    assert b'"clients": []' in (await proxy.get("/-/stats")).body
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with (
        ClientSession("http://millpond", connector=connector) as operator,
        operator.get("/-/stats") as answer,
    ):
        [shown] = (await answer.json())["clients"]
    assert (shown["client"], shown["requests"], shown["bytes"]) == ("127.0.0.9", 1, 4 * MB)


async def test_a_rate_of_zero_is_no_limit(start: Start) -> None:
    proxy = await start(access={"limits": {"bytes_per_second": 0}})
    async with client_at(proxy, "127.0.0.2") as client:
        assert await pull(client, BLOB) == (200, 4 * MB)
        assert (await pull(client, MANIFEST))[0] == 200


@pytest.mark.one_process
async def test_without_configuration_clients_are_counted(proxy: Proxy) -> None:
    await warm(proxy, BLOB, MANIFEST, MANIFEST, MANIFEST)
    before = await prepared(proxy)
    for _ in range(5):
        await proxy.get(MANIFEST)
    assert await prepared(proxy) > before
    size = len(IMAGE.manifest)
    counted = {one["client"]: (one["requests"], one["bytes"]) for one in proxy.stats["clients"]}
    assert counted == {"127.0.0.9": (4, 4 * MB + 3 * size), "127.0.0.1": (5, 5 * size)}
    assert not any(one["delayed"] or one["refused"] for one in proxy.stats["clients"])
