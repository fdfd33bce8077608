"""The events of the cache, as a stream and as a list."""

import asyncio

import pytest
from aiohttp import ClientError

from proxy.runtime.events import EventKind, Events, Subscription
from proxy.web.admin.api import events as event_routes
from proxy.web.admin.api.routes import PREFIX
from tests.running import Proxy, until
from tests.web.admin.api.client import ApiClient


@pytest.fixture
def events(proxy: Proxy) -> Events:
    return proxy.app.operator_api.events


async def test_recent_events_come_first_and_then_the_others(events: Events, api: ApiClient) -> None:
    events.emit(EventKind.UPSTREAM_DOWN, "docker.io", cause="refused")
    events.emit(EventKind.UPSTREAM_UP, "docker.io", seconds_down=1.5)
    async with api.stream("events") as stream:
        fields, data = await stream.next()
        assert fields == {"id": "1", "event": "upstream-down"}
        assert data["data"] == {"cause": "refused"}
        assert (await stream.next())[1]["serial"] == 2
        events.emit(EventKind.PULL, "docker.io/library/nginx:1", digest=None, bytes=10)
        fields, data = await stream.next()
        assert fields == {"id": "3", "event": "pull"}
        assert data["subject"] == "docker.io/library/nginx:1"
        assert data["data"] == {"digest": None, "bytes": 10}


async def test_a_client_that_comes_back_gets_what_it_missed(events: Events, api: ApiClient) -> None:
    for number in range(3):
        events.emit(EventKind.EVICTED, f"blob {number}")
    async with api.stream("events", headers={"Last-Event-ID": "2"}) as stream:
        assert (await stream.next())[0]["id"] == "3"
    async with api.stream("events", after="1") as stream:
        assert (await stream.next())[0]["id"] == "2"
    for earlier in ("99", "x", "-1", "9" * 30):  # of an earlier process, or none
        async with api.stream("events", headers={"Last-Event-ID": earlier}) as stream:
            assert (await stream.next())[0]["id"] == "1"


async def test_kinds_can_be_chosen(events: Events, api: ApiClient) -> None:
    events.emit(EventKind.EVICTED, "a")
    events.emit(EventKind.CORRUPT, "b")
    events.emit(EventKind.DENIED, "c")
    found = await api.get("events", follow="false", kinds="evicted,denied")
    assert [one["subject"] for one in found["events"]] == ["a", "c"]
    async with api.stream("events", kinds="corrupt") as stream:
        assert (await stream.next())[1]["subject"] == "b"
        events.emit(EventKind.EVICTED, "d")
        events.emit(EventKind.CORRUPT, "e")
        assert (await stream.next())[1]["subject"] == "e"
    told = await api.ask("GET", "events", kinds="nothing")
    assert told.status == 400
    assert "upstream-down" in told.error[1]


async def test_a_client_with_a_strange_name_ends_no_stream(
    events: Events, api: ApiClient, proxy: Proxy
) -> None:
    host, _, port = proxy.app.address.rpartition(":")
    async with api.stream("events", kinds="pull") as stream:
        await until(lambda: events.wanted(EventKind.PULL))
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(
            b"GET /v2/library/app/manifests/latest HTTP/1.1\r\nHost: here\r\n"
            b"User-Agent: odd\xff\r\nConnection: close\r\n\r\n"
        )
        assert (await reader.read()).startswith(b"HTTP/1.1 200")
        writer.close()
        async with asyncio.timeout(20):
            assert (await stream.next())[1]["data"]["user_agent"] == "odd?"


async def test_a_failure_in_mid_stream_ends_it(
    events: Events, api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: object) -> None:
        raise LookupError("out of the blue")

    async with api.stream("events") as stream:
        await until(lambda: events.wanted(EventKind.DENIED))
        monkeypatch.setattr(event_routes, "_shown", failing)
        events.emit(EventKind.DENIED, "docker.io/library/nginx:1")
        async with asyncio.timeout(20):
            with pytest.raises(ClientError):
                await stream.next()


async def test_a_quiet_stream_leaves_no_tasks(
    events: Events, api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_routes, "QUIET_SECONDS", 0.005)
    seen: set[asyncio.Task[object]] = set()

    def waiting() -> set[asyncio.Task[object]]:
        name = Subscription.next.__qualname__
        return {t for t in asyncio.all_tasks() if getattr(t.get_coro(), "__qualname__", "") == name}

    def have_passed(count: int) -> bool:
        seen.update(waiting())
        return len(seen) > count

    async with api.stream("events") as stream:
        await until(lambda: have_passed(5))
        assert len(waiting()) <= 2
        events.emit(EventKind.DENIED, "docker.io/library/nginx:1")
        assert (await stream.next())[0]["event"] == "denied"


async def test_events_are_for_operators(proxy: Proxy) -> None:
    assert (await proxy.get(PREFIX + "events")).status == 403


async def test_a_subscription_ends_with_its_stream(
    events: Events, api: ApiClient, proxy: Proxy
) -> None:
    async with api.stream("events"):
        await until(lambda: len(events._subscriptions) == 1)
    await until(lambda: not events._subscriptions)
