"""Access: every path asks, and the answer counts from the next request on."""

import asyncio
import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.access.principals import OPERATOR, Method, Principal
from proxy.access.rules import Action, Decision
from proxy.core.names import Repo, Target
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

IMAGE = content.image(1, layers=(1000,))
[LAYER] = IMAGE.layers
REPO = "/v2/library/app"
APP = Target("docker.io", Repo("library/app"))
PULLS = [
    f"{REPO}/manifests/latest",
    f"{REPO}/manifests/{IMAGE.digest}",
    f"{REPO}/blobs/{LAYER}",
    f"{REPO}/tags/list",
    f"{REPO}/referrers/{IMAGE.digest}",
]
PATHS = {
    **dict.fromkeys(PULLS, Action.PULL),
    "/v2/": Action.CONNECT,
    "/v2/_catalog": Action.CATALOG,
    "/": Action.OBSERVE,
    "/metrics": Action.OBSERVE,
    "/-/stats": Action.OBSERVE,
    "/-/healthz": Action.OBSERVE,
    "/-/readyz": Action.OBSERVE,
    "/-/none": Action.OBSERVE,
    "/-/images": Action.OPERATE,
    "/-/pins": Action.OPERATE,
    "/-/fleet": Action.OPERATE,
    "/-/in-use": Action.OPERATE,
    "/-/evict?bytes=1": Action.OPERATE,
}


@dataclass
class Rules:
    """Denies some actions, and records what it was asked."""

    denied: set[Action] = field(default_factory=set)
    asked: list[tuple[Principal, Action, Target | None]] = field(default_factory=list)

    def decide(self, principal: Principal, action: Action, target: Target | None) -> Decision:
        self.asked.append((principal, action, target))
        if action in self.denied:
            return Decision(is_allowed=False, text="a rule of this test", because="no")
        return Decision(is_allowed=True, text="a rule of this test")


@pytest.fixture
def rules() -> Rules:
    return Rules()


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream, rules: Rules) -> Proxy:
    upstream.add("library/app", IMAGE, tags=["latest"])
    return await start(rules=rules, catalog=True)


async def answered_from_memory(proxy: Proxy) -> int:
    page = (await proxy.get("/metrics")).body.decode()
    [line] = [it for it in page.splitlines() if it.startswith("millpond_prepared_answers_total")]
    return int(float(line.split()[1]))


def code(body: bytes) -> str:
    [error] = json.loads(body)["errors"]
    return str(error["code"])


@pytest.mark.parametrize("path", PATHS)
async def test_every_path_asks_and_is_denied(
    proxy: Proxy, rules: Rules, upstream: FakeUpstream, path: str
) -> None:
    rules.denied = {PATHS[path]}
    asked = len(upstream.requests)
    answer = await proxy.get(path)
    assert (answer.status, code(answer.body)) == (403, "DENIED")
    assert (await proxy.head(path)).status == 403
    assert len(upstream.requests) == asked
    (principal, action, target), *_ = rules.asked
    assert (principal.address, action) == ("127.0.0.1", PATHS[path])
    assert target == (APP if action is Action.PULL else None)


@pytest.mark.parametrize("path", PULLS[:3])
async def test_a_remembered_request_is_denied_once_the_rule_changes(
    proxy: Proxy, rules: Rules, path: str
) -> None:
    for kept in (f"{REPO}/manifests/latest", path):
        assert (await proxy.get(kept)).status == 200
    await proxy.settled()
    assert (await proxy.get(path)).status == 200, "a small blob is in memory after this"
    host, port = proxy.app.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    before = await answered_from_memory(proxy)

    async def status() -> bytes:
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return (await reader.readuntil(b"\r\n\r\n"))[9:12]

    try:
        for _ in range(3):
            assert await status() == b"200"
        assert await answered_from_memory(proxy) == before + 1
        rules.asked.clear()
        assert await status() == b"200"
        asked = list(rules.asked)
        assert await answered_from_memory(proxy) == before + 2
        assert asked == [(Principal("127.0.0.1"), Action.PULL, APP)]
        rules.denied = {Action.PULL}
        assert await status() == b"403"
        rules.denied = set()
        assert await status() == b"200"
    finally:
        writer.transport.abort()


async def test_another_path_with_remembered_headers_is_asked_about(
    proxy: Proxy, rules: Rules, upstream: FakeUpstream
) -> None:
    upstream.add("library/other", IMAGE, tags=["latest"])
    paths = [f"{REPO}/manifests/latest", "/v2/library/other/manifests/latest"]
    for path in paths:
        assert (await proxy.get(path)).status == 200
    await proxy.settled()
    host, port = proxy.app.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))

    async def status(path: str) -> bytes:
        writer.write(f"HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        return (await reader.readuntil(b"\r\n\r\n"))[9:12]

    try:
        for _ in range(2):
            assert await status(paths[0]) == b"200"
        before = await answered_from_memory(proxy)
        rules.denied, rules.asked[:] = {Action.PULL}, []
        assert await status(paths[1]) == b"403"
        assert {target for _, _, target in rules.asked} == {
            Target("docker.io", Repo("library/other"))
        }
        rules.denied = set()
        assert await status(paths[1]) == b"200"
        assert await answered_from_memory(proxy) == before + 1
    finally:
        writer.transport.abort()


async def test_a_page_in_an_operators_browser_changes_nothing(proxy: Proxy) -> None:
    for method, path in (("POST", "/-/evict?bytes=1"), ("PUT", "/-/pins?pin=a")):
        answer = await proxy.ask(method, path, Origin="http://evil.example")
        assert answer.status == 403
        assert (await proxy.ask(method, path)).status == 200
    assert (await proxy.get("/-/pins", Origin="http://evil.example")).status == 200


async def test_the_admin_socket_is_asked_about_too(proxy: Proxy, rules: Rules) -> None:
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=connector) as operator:
        assert (await operator.get("/-/pins")).status == 200
        assert (OPERATOR, Action.OPERATE, None) in rules.asked
        rules.denied = {Action.OPERATE}
        assert (await operator.get("/-/pins")).status == 403


async def test_a_denied_operator_sees_no_names_in_the_statistics(
    start: Start, rules: Rules, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret")
    rules.denied = {Action.OPERATE}
    proxy = await start(rules=rules, admin={"token_file": str(tmp_path / "token")})
    assert (await proxy.get("/-/stats", Authorization="Bearer secret")).status == 200
    assert (Principal("127.0.0.1", method=Method.ADMIN_TOKEN), Action.OPERATE, None) in rules.asked
