"""What a running proxy starts, and what it stops."""

import asyncio
import io
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession

from proxy.app import running
from proxy.runtime import logs
from proxy.settings import Settings
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

ALWAYS = {"request log", "loop lag", "reconcile", "eviction", "names", "feeds", "upstreams"}
PUBLIC = {"stalled clients", "scrub"}


def supervised(proxy: Proxy) -> set[str]:
    """Return the tasks that the app itself starts and that have a metric."""
    counted = proxy.app.admin._metrics.tasks
    return set(counted) & (ALWAYS | PUBLIC | {"certificate"})


async def test_every_background_task_is_started_and_has_its_metric(start: Start) -> None:
    proxy = await start(storage={"scrub_every": "1h"})
    page = (await proxy.get("/metrics")).body.decode()
    shown = set(re.findall(r'^millpond_background_up\{task="([^"]+)"\}', page, re.MULTILINE))
    assert shown >= ALWAYS | PUBLIC
    assert "certificate" not in shown


async def test_no_content_is_verified_again_where_that_is_switched_off(proxy: Proxy) -> None:
    assert supervised(proxy) == (ALWAYS | PUBLIC) - {"scrub"}


async def test_a_certificate_is_watched_where_there_is_one(start: Start, tmp_path: Path) -> None:
    certificate(tmp_path)
    proxy = await start(
        tls={"cert_file": str(tmp_path / "authority.pem"), "key_file": str(tmp_path / "key.pem")}
    )
    assert "certificate" in supervised(proxy)


async def test_without_the_public_port_only_the_operator_is_served(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    document: dict[str, Any] = {
        "listen": "192.0.2.1:1",  # not this machine's: it must not be tried
        "storage": {"path": str(tmp_path / "cache"), "min_free": 0},
        "upstreams": {"docker.io": {"url": upstream.url}},
    }
    output = logs.configure("error", "json", io.StringIO())
    async with running(Settings.model_validate(document), output, is_public=False) as app:
        assert app.address is None
        assert (tmp_path / "cache" / "admin.sock").is_socket()
        assert set(app.admin._metrics.tasks).isdisjoint({*PUBLIC, "certificate"})
    assert not (tmp_path / "cache" / "admin.sock").exists()


async def test_a_proxy_that_stops_is_not_ready_and_serves_until_its_delay_is_over(
    start: Start,
) -> None:
    proxy = await start(shutdown_delay="2s")
    address = f"http://{proxy.app.address}"
    async with ClientSession() as client:
        closing = asyncio.create_task(proxy.close())
        await until(lambda: proxy.app.admin.is_stopping)
        async with client.get(f"{address}/-/readyz") as answer:
            assert answer.status == 503
            assert "stopping" in await answer.text()
        async with client.get(f"{address}/v2/") as answer:
            assert answer.status == 200
        assert not closing.done()
        await closing
        with pytest.raises(ClientConnectionError):
            await client.get(f"{address}/v2/")
