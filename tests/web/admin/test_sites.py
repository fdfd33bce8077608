"""Which web pages see what is under `/-/`: none that has another name (DNS rebinding)."""

import asyncio
import json
import socket
from pathlib import Path
from typing import Any

import pytest

from proxy.settings import Settings
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

PAGES = ["/-/", "/-/stats", "/-/api/v1/stats", "/-/api/v1/series", "/-/images"]
FOREIGN = ["evil.example", "evil.example:5000", "127.0.0.1.evil.example", "localhost.evil.example."]
OURS = [
    *("localhost", "localhost:5000", "LOCALHOST", "127.0.0.1", "127.0.0.1:5000", "[::1]:5000"),
    *("192.0.2.7:5000", "millpond", "millpond:80", "cache.localhost", "host.docker.internal:5000"),
    socket.gethostname(),
]


async def status(proxy: Proxy, path: str, host: str, **headers: str) -> int:
    return (await proxy.get(path, Host=host, **headers)).status


@pytest.mark.parametrize("host", FOREIGN)
async def test_a_page_whose_name_leads_here_sees_nothing(proxy: Proxy, host: str) -> None:
    for page in PAGES:
        answer = await proxy.get(page, Host=host, Sec_Fetch_Site="same-origin")
        assert (answer.status, json.loads(answer.body)["errors"][0]["code"]) == (403, "DENIED")
        assert b"trusted_proxies" in answer.body


@pytest.mark.parametrize("host", OURS)
async def test_our_names_and_all_addresses_lead_here(proxy: Proxy, host: str) -> None:
    assert await status(proxy, "/-/stats", host) == 200


async def test_a_request_without_a_host_is_from_no_browser(proxy: Proxy) -> None:
    host, _, port = (proxy.app.address or "").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /-/stats HTTP/1.0\r\n\r\n")
    async with asyncio.timeout(30):
        assert b" 200 " in await reader.readline()
    writer.close()


@pytest.mark.parametrize("path", ["/-/healthz", "/-/readyz", "/metrics", "/", "/v2/"])
async def test_probes_and_pulls_use_any_name(proxy: Proxy, path: str) -> None:
    assert await status(proxy, path, "evil.example") == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"access": {"trusted_proxies": ["127.0.0.1"]}},
        {"access": {"rules": [{"allow": "pull"}]}},
        {"listen": "0.0.0.0:0"},
        {"hub": {"hostnames": ["cache.example"]}},
    ],
    ids=["behind a trusted proxy", "with access", "for the network", "a configured name"],
)
async def test_names_matter_only_where_nothing_else_protects(
    start: Start, settings: dict[str, Any]
) -> None:
    proxy = await start(**settings)
    assert await status(proxy, "/-/stats", "cache.example") == 200


@pytest.mark.parametrize(
    ("headers", "found"),
    [
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "cors"}, 403),
        ({"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate"}, 200),
        ({"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors"}, 200),
        ({"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate"}, 200),
        ({}, 200),
    ],
)
async def test_pages_of_other_sites_load_nothing_and_may_link(
    start: Start, headers: dict[str, str], found: int
) -> None:
    proxy = await start(access={"rules": [{"allow": "pull"}]})
    for page in PAGES[:4]:
        assert await status(proxy, page, "cache.example", **headers) == found


async def test_a_refused_page_has_an_audit_line(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "audit.jsonl"
    proxy = await start(access={"audit_file": str(file)})
    assert await status(proxy, "/-/stats", "evil.example") == 403
    await until(lambda: file.read_text().count("\n") == 1)
    line = json.loads(file.read_text())
    assert (line["event"], line["outcome"], line["action"]) == ("admin", "denied", "GET /-/stats")


async def test_a_reload_changes_the_names(proxy: Proxy, upstream: FakeUpstream) -> None:
    assert await status(proxy, "/-/stats", "cache.example") == 403
    named = {"url": upstream.url, "hostnames": ["cache.example"]}
    await proxy.app.reload(Settings.model_validate({"upstreams": {"docker.io": named}}))
    assert await status(proxy, "/-/stats", "cache.example") == 200
