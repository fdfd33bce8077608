"""Offline: no name is looked up, no socket is opened, and everything held is served."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.cli.serving import offline_note
from proxy.settings import Settings
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.network import Names
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.web.admin.test_actions import Operator

IMAGE, OTHER = content.image(1), content.image(2)
LATEST = "/v2/app/manifests/latest"


@dataclass
class Counted:
    """A registry of which only the connections and the lookups of its name matter."""

    names: Names = field(default_factory=lambda: Names({"registry.test": ["127.0.0.1"]}))
    port: int = 0
    connections: int = 0

    @property
    def url(self) -> str:
        return f"http://registry.test:{self.port}"

    async def accept(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        writer.close()


@pytest.fixture
async def counted() -> AsyncIterator[Counted]:
    counted = Counted()
    server = await asyncio.start_server(counted.accept, "127.0.0.1", 0)
    counted.port = server.sockets[0].getsockname()[1]
    async with server:
        yield counted


@asynccontextmanager
async def operating(proxy: Proxy) -> AsyncIterator[Operator]:
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        yield Operator(session)


async def filled(start: Start, upstream: FakeUpstream) -> None:
    """Have the cache hold an image, and a list of tags."""
    upstream.add("library/app", IMAGE, tags=["latest"])
    proxy = await start()
    assert (await proxy.get(LATEST)).body == IMAGE.manifest
    for digest in IMAGE.blobs:
        await proxy.get(f"/v2/app/blobs/{digest}")
    await proxy.settled()
    await proxy.close()


@pytest.mark.parametrize(
    "settings",
    [
        {"offline": True},
        {"offline": True, "hub": {"offline": False}},
        {"hub": {"offline": True}},
        {"offline": "auto", "hub": {"offline": True}},
    ],
)
async def test_nothing_is_looked_up_and_no_socket_is_opened(
    start: Start, upstream: FakeUpstream, clock: Clock, counted: Counted, settings: dict[str, Any]
) -> None:
    await filled(start, upstream)
    clock.advance(1e7)
    hub = {"url": counted.url, "private": True} | settings.get("hub", {})
    changes = settings | {"hub": hub, "network": counted.names.network, "catalog": True}
    proxy = await start(**changes)
    held = [LATEST, f"/v2/app/manifests/{IMAGE.digest}", "/v2/app/tags/list", "/v2/_catalog"]
    held += [f"/v2/app/blobs/{digest}" for digest in IMAGE.blobs]
    held += [f"/v2/app/referrers/{IMAGE.digest}"]
    for path in held * 3:
        for answer in (await proxy.get(path, Cache_Control="no-cache"), await proxy.get(path)):
            assert answer.status == 200, path
            assert "offline" in answer.headers["Cache-Status"] or path == "/v2/_catalog", path
    for path in ("/v2/app/manifests/none", f"/v2/app/blobs/{OTHER.config}", "/v2/none/tags/list"):
        answer = await proxy.get(path)
        assert answer.status == 404
        assert "offline" in answer.headers["Cache-Status"]
        assert b"offline" in answer.body
    async with operating(proxy) as operator:
        assert (await operator.ask("POST", "refresh", image="app")).status == 409
        for name in ("app", "app:none"):
            await operator.lines("POST", "pull", image=name, platforms="", referrers="true")
        await operator.lines("POST", "verify", repair="true")
        await operator.ask("GET", "expand", match="docker.io/**")
    assert proxy.numbers["offline"] is True
    assert (counted.connections, counted.names.asked) == (0, [])


async def test_other_upstreams_are_asked(start: Start, upstream: FakeUpstream) -> None:
    await filled(start, upstream)
    upstream.clear()
    proxy = await start(hub={"offline": True}, upstreams={"lab": {"url": upstream.url}})
    assert (await proxy.get("/v2/lab/library/app/manifests/latest")).status == 200
    assert upstream.requests
    assert (await proxy.get(LATEST)).status == 200


async def test_live_by_the_operator(start: Start, upstream: FakeUpstream, clock: Clock) -> None:
    await filled(start, upstream)
    proxy = await start()
    async with operating(proxy) as operator:
        document = await operator.told("POST", "offline", upstream="docker.io", value="true")
        assert document["upstreams"]["docker.io"]["offline"] is True
        assert document["upstreams"]["ghcr.io"]["offline"] is False
        clock.advance(1e7)
        upstream.clear()
        assert "offline" in (await proxy.get(LATEST)).headers["Cache-Status"]
        assert not upstream.requests
        await operator.told("POST", "offline", value="configured")
        assert "offline" not in (await proxy.get(LATEST)).headers["Cache-Status"]
        assert upstream.requests
        assert (await operator.ask("POST", "offline", value="maybe")).status == 400
        answer = await operator.ask("POST", "offline", upstream="none.example", value="true")
        assert answer.status == 404
    assert (await proxy.ask("POST", "/-/offline?value=true")).status == 403


async def test_auto_follows_the_health_of_the_upstream(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    await filled(start, upstream)
    patience = {"retries": 0, "resumes": 0, "failures": 1, "pause": "1s", "cool_down": 0}
    proxy = await start(offline="auto", patience=patience, freshness={"negative_ttl": 0})
    upstream.fail(503)
    assert (await proxy.get("/v2/app/manifests/other")).status == 502
    clock.advance(1e7)
    requests = len(upstream.requests)
    answer = await proxy.get(LATEST)
    assert (answer.status, answer.body) == (200, IMAGE.manifest)
    assert "offline" in answer.headers["Cache-Status"]
    assert (await proxy.get("/v2/app/manifests/other")).status == 404
    assert len(upstream.requests) == requests
    upstream.heal()
    await until(lambda: not proxy.numbers["offline"])
    answer = await proxy.get(LATEST)
    assert answer.status == 200
    assert "offline" not in answer.headers["Cache-Status"]
    assert len(upstream.requests) > requests


def test_the_settings_say_who_is_offline() -> None:
    def shown(**settings: Any) -> str:
        return offline_note(Settings.model_validate(settings))

    assert shown() == ""
    assert shown(offline=True) == ", offline"
    assert shown(offline="auto") == ", offline while it fails"
    assert shown(upstreams={"ghcr.io": {"offline": True}}) == ", offline: ghcr.io"
