"""The live numbers: one stream for all watchers, with names for operators only."""

import asyncio
import socket

import pytest

from proxy.web.admin.api.live import Live
from proxy.web.admin.api.routes import PREFIX
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.web.admin.api.client import ApiClient, on_socket

SLOW = content.image(3, layers=(300_000,))


def live(proxy: Proxy) -> Live:
    return proxy.app.operator_api.live


async def test_the_numbers_follow_what_happens(
    proxy: Proxy, anybody: ApiClient, upstream: FakeUpstream
) -> None:
    live(proxy).seconds = 0.05
    async with anybody.stream("live") as stream:
        fields, first = await stream.next()
        assert fields == {"event": "stats"}
        assert first["requests"] == 0
        assert first["upstreams"]["docker.io"]["latency_ms"] is None
        await proxy.get("/v2/app/manifests/latest")
        while (now := (await stream.next())[1])["requests"] == 0:
            pass
        assert now["time"] > first["time"]
        assert now["client_bytes"] > 0
        assert now["cache"]["files"] > 0
        assert now["upstreams"]["docker.io"]["latency_ms"] > 0
        assert now["upstreams"]["docker.io"]["circuit"] == "closed"
        assert now["upstreams"]["docker.io"]["errors"] == 0
        upstream.fail(500)
        assert (await proxy.get("/v2/app/manifests/other")).status == 502
        while (now := (await stream.next())[1])["errors"] == 0:
            pass
        assert now["upstreams"]["docker.io"]["errors"] == 1


async def test_names_of_downloads_are_for_operators(
    proxy: Proxy, anybody: ApiClient, api: ApiClient, upstream: FakeUpstream
) -> None:
    upstream.add("library/slow", SLOW)
    release = upstream.stall(100_000, kind="blob")
    async with proxy.client.get(f"/v2/slow/blobs/{SLOW.layers[0]}") as answer:
        await answer.content.read(1)
        async with anybody.stream("live") as theirs, api.stream("live") as ours:
            [theirs_now] = (await theirs.next())[1]["downloads"]
            [ours_now] = (await ours.next())[1]["downloads"]
        release.set()
    assert ours_now["repository"] == "library/slow"
    assert ours_now["digest"] == SLOW.layers[0]
    assert ours_now["readers"] == 1
    assert theirs_now["repository"] is theirs_now["digest"] is None
    assert theirs_now["size"] == 300_000


async def test_a_tick_is_made_once_for_all_watchers(
    proxy: Proxy, anybody: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    live(proxy).seconds = 0.05
    made = 0
    stats = live(proxy)._stats

    def counted(oldest_use: float | None) -> object:
        nonlocal made
        made += 1
        return stats(oldest_use)

    monkeypatch.setattr(Live, "_stats", lambda _, oldest: counted(oldest))
    async with anybody.stream("live") as one, anybody.stream("live") as other:
        times = [(await one.next())[1]["time"] for _ in range(4)]
        assert times == sorted(set(times))
        seen = {(await other.next())[1]["time"] for _ in range(4)}
        assert len(seen | set(times)) <= made
    await until(lambda: not live(proxy)._watchers)
    await asyncio.sleep(0)
    before = made
    await asyncio.sleep(0.2)
    assert made <= before + 1, "nobody watches"


async def test_a_watcher_that_does_not_read_delays_nobody(proxy: Proxy, anybody: ApiClient) -> None:
    live(proxy).seconds = 0.01
    host, port = proxy.app.address.split(":")
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        lazy.connect((host, int(port)))
        lazy.sendall(f"GET {PREFIX}live HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        await until(lambda: live(proxy)._watchers == 1)
        async with anybody.stream("live") as stream:
            for _ in range(50):
                await stream.next()
    await until(lambda: live(proxy)._watchers == 0)


async def test_too_many_streams_get_503_and_others_leave_half_to_operators(
    proxy: Proxy, anybody: ApiClient, api: ApiClient
) -> None:
    proxy.app.operator_api.streams._limit = 4
    async with anybody.stream("live"), anybody.stream("live"):
        answer = await proxy.get(PREFIX + "live")
        told = anybody.checked("GET", "live", answer.status, answer.body)
        assert told.status == 503
        assert "2 streams are open already" in told.error[1]
        assert answer.headers["Retry-After"]
        async with api.stream("live"), api.stream("live"):
            assert (await api.ask("GET", "live")).status == 503
    await until(lambda: len(proxy.app.operator_api.streams) == 0)
    async with anybody.stream("live") as stream:
        await stream.next()


async def test_the_end_of_the_process_ends_streams(start: Start) -> None:
    proxy = await start(shutdown_grace="60s")
    async with on_socket(proxy) as api, api.stream("live") as stream, api.stream("events") as other:
        await stream.next()
        loop = asyncio.get_running_loop()
        began = loop.time()
        ending = asyncio.ensure_future(proxy.close())
        await stream.rest()
        await other.rest()
        assert loop.time() - began < 30, "it does not wait for the grace of responses"
        await ending


async def test_head_opens_no_stream(anybody: ApiClient) -> None:
    async with anybody.session.head(PREFIX + "live") as answer:
        assert answer.status == 405
