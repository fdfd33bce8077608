"""The running process: reloaded settings, the log level, and the API behind worker processes."""

import asyncio
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import Millpond, running
from tests.web.admin.api.client import described


@pytest.fixture(params=[1, 2], ids=["one process", "workers"])
async def millpond(request: pytest.FixtureRequest, upstream: FakeUpstream) -> Any:
    upstream.add("library/app", content.image(1))
    with running(upstream.url, extra={"workers": request.param}) as program:
        yield program


async def test_reload_and_log_level(millpond: Millpond) -> None:
    connector = UnixConnector(str(millpond.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=connector) as session:
        api = await described(session)
        assert await api.get("log-level") == {"level": "info"}
        async with asyncio.timeout(60):  # 503 until the workers have started
            while (await api.ask("PUT", "log-level", {"level": "error"})).status == 503:
                await asyncio.sleep(0.1)
        assert await api.get("log-level") == {"level": "error"}
        assert (await api.ask("PUT", "log-level", {"level": "loud"})).status == 400
        millpond.configure({"log": {"level": "warning"}, "upstreams": {"lab": {"url": "http://x"}}})
        assert await api.change("POST", "reload") == {"reloaded": True}
        assert await api.get("log-level") == {"level": "warning"}
        names = [one["name"] for one in (await api.get("upstreams"))["upstreams"]]
        assert "lab" in names
        millpond.configure({"freshness": {"tag_ttl": "soon"}})
        told = await api.ask("POST", "reload")
        assert told.status == 400
        assert "tag_ttl" in told.error[1]
        assert await api.get("log-level") == {"level": "warning"}


async def test_streams_and_numbers_over_the_port(millpond: Millpond) -> None:
    async with ClientSession(millpond.url) as session:
        api = await described(session)
        async with api.stream("live") as stream, asyncio.timeout(60):
            assert (await stream.next())[1]["requests"] == 0
            for _ in range(3):
                async with session.get("/v2/app/manifests/latest") as answer:
                    assert answer.status == 200
            while (await stream.next())[1]["requests"] < 3:
                pass
        series = await api.get("series")
        assert sum(point["requests"] for point in series["points"]) == 3
        assert (await api.ask("PUT", "pins", {"pin": "app"})).status == 403
    connector = UnixConnector(str(millpond.storage / "admin.sock"))
    async with (
        ClientSession("http://millpond", connector=connector) as session,
        asyncio.timeout(60),
    ):
        api = await described(session)
        while not (top := (await api.get("top"))["images"]) or top[0]["pulls"] < 3:
            await asyncio.sleep(0.1)
        assert top[0]["name"] == "docker.io/library/app:latest"


async def test_counts_survive_a_restart_of_the_program(millpond: Millpond) -> None:
    async with (
        ClientSession(millpond.url) as session,
        session.get("/v2/app/manifests/latest") as answer,
    ):
        assert answer.status == 200
    millpond.restart()
    connector = UnixConnector(str(millpond.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=connector) as session:
        api = await described(session)
        series = await api.get("series", since=0)
        assert sum(point["requests"] for point in series["points"]) == 1
        [image] = (await api.get("top"))["images"]
        assert image["pulls"] == 1
