"""Permissions: every principal, on every path, in every state of the cache.

``MAY`` says who may. No cell may differ: not for a cold cache, nor for a warm one, a download in
progress, a repeated request, a registry that fails, or offline.
"""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector, UnixConnector

from proxy.settings import Settings
from tests.access.company import ACCESS, NODE, People, basic
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

SMALL, LARGE = 1000, 400_000
ANONYMOUS = {"anonymous", "anonymous with a token", "a node"}
WRONG = {"a wrong token", "a wrong password"}
PRINCIPALS: dict[str, dict[str, str]] = {
    "anonymous": {},
    "anonymous with a token": {"Authorization": "Bearer anonymous"},
    "a node": {},
    "ann": {"Authorization": "Bearer ann"},
    "ann by password": {"Authorization": basic("ann")},
    "bob": {"Authorization": "Bearer bob"},
    "a job": {"Authorization": "Bearer ci:acme/app"},
    "ops": {"Authorization": "Bearer ops"},
    "the admin token": {"Authorization": "Bearer secret"},
    "a wrong token": {"Authorization": "Bearer wrong"},
    "a wrong password": {"Authorization": basic("mallory")},
    "the operator": {},
}
KNOWN = set(PRINCIPALS) - WRONG - {"the admin token"}
MAY: dict[str, set[str]] = {
    "docker.io/library/app": KNOWN,
    "docker.io/bad/miner": {"the operator"},
    "docker.io/elsewhere/app": {"the operator"},
    "ghcr.io/acme/app": {"ann", "ann by password", "a job", "a node", "the operator"},
    "ghcr.io/acme/absent": {"ann", "ann by password", "a job", "a node", "the operator"},
    "ghcr.io/other/app": {"the operator"},
}
ABSENT = "ghcr.io/acme/absent"
ADMINS = {"ops", "the operator", "the admin token"}
IMAGES = {name: content.image(name, layers=(SMALL, LARGE)) for name in MAY}
PATHS: dict[str, Callable[[content.Image], tuple[str, str]]] = {
    "a tag": lambda image: ("GET", "manifests/latest"),
    "HEAD of a tag": lambda image: ("HEAD", "manifests/latest"),
    "a manifest": lambda image: ("GET", f"manifests/{image.digest}"),
    "HEAD of a manifest": lambda image: ("HEAD", f"manifests/{image.digest}"),
    "a small blob": lambda image: ("GET", f"blobs/{image.layers[0]}"),
    "a large blob": lambda image: ("GET", f"blobs/{image.layers[1]}"),
    "HEAD of a blob": lambda image: ("HEAD", f"blobs/{image.layers[1]}"),
    "tags": lambda image: ("GET", "tags/list"),
    "referrers": lambda image: ("GET", f"referrers/{image.digest}"),
}
FAST = ("a tag", "HEAD of a tag", "a manifest", "HEAD of a manifest", "a small blob")
SPELLINGS: dict[str, Callable[[str, str], tuple[str, dict[str, str]]]] = {
    "by path": lambda upstream, repo: (f"/v2/{upstream}/{repo}/{{}}", {}),
    "by alias": lambda upstream, repo: (f"/v2/alias-{upstream}/{repo}/{{}}", {}),
    "by ns": lambda upstream, repo: (f"/v2/{repo}/{{}}?ns={upstream}", {}),
    "by Host": lambda upstream, repo: (f"/v2/{repo}/{{}}", {"Host": f"{upstream}.mirror.test"}),
}


@dataclass
class World:
    """A proxy, and a session of each principal."""

    proxy: Proxy
    upstream: FakeUpstream
    sessions: dict[str, ClientSession]

    async def ask(
        self, principal: str, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        sent = PRINCIPALS[principal] | (headers or {})
        session = self.sessions[principal]
        async with asyncio.timeout(30), session.request(method, path, headers=sent) as response:
            return response.status, await response.read()

    def path(self, name: str, path: str) -> str:
        return f"/v2/{name}/{PATHS[path](IMAGES[name])[1]}"

    async def differences(self, spellings: dict[str, Any] = SPELLINGS) -> list[str]:
        """Return the cells that differ from the table."""
        found: list[str] = []
        for principal in PRINCIPALS:
            for name in MAY:
                for path in PATHS:
                    for spelling in spellings:
                        cell = await self._differs(principal, name, path, spelling)
                        found += [] if cell is None else [cell]
        return found

    async def _differs(self, principal: str, name: str, path: str, spelling: str) -> str | None:
        method, rest = PATHS[path](IMAGES[name])
        upstream, _, repo = name.partition("/")
        where, headers = SPELLINGS[spelling](upstream, repo)
        asked = len(self.upstream.requests)
        status, body = await self.ask(principal, method, where.format(rest), headers)
        expected = allowed(principal, name)
        if expected == 200 and name == ABSENT:
            return None if status not in (401, 403) else f"{principal}, {name}, {path}: {status}"
        text = ""
        if expected == 200 and method == "GET":
            text = wrong_body(path, IMAGES[name], body)
        if expected in (401, 403) and len(self.upstream.requests) != asked:
            text = "upstream was asked"
        if expected in (401, 403) and method == "GET" and not is_refusal(name, body):
            text = f"this refusal is another one: {body!r}"
        if status == expected and not text:
            return None
        return f"{principal}, {name}, {path}, {spelling}: {status}, not {expected}; {text}"

    async def fast(self) -> int:
        """Return how many requests the response cache has answered."""
        page = (await self.proxy.get("/metrics")).body.decode()
        found = re.search(r"^millpond_prepared_answers_total (\S+)$", page, re.MULTILINE)
        assert found is not None
        return int(float(found[1]))


def allowed(principal: str, name: str) -> int:
    if principal in MAY[name]:
        return 200
    if principal in WRONG | {"the admin token"}:
        return 401
    is_for_users = "ann" in MAY[name]
    return 401 if principal in ANONYMOUS and is_for_users else 403


def wrong_body(path: str, image: content.Image, body: bytes) -> str:
    expected = {
        "a tag": image.manifest,
        "a manifest": image.manifest,
        "a small blob": image.blobs[image.layers[0]],
        "a large blob": image.blobs[image.layers[1]],
    }
    if path in expected:
        return "" if body == expected[path] else "another body"
    return "" if (b"latest" in body or b"manifests" in body) else "another list"


def is_refusal(name: str, body: bytes) -> bool:
    """A refusal is the same for what exists and for what does not."""
    [error] = json.loads(body)["errors"]
    because = "SEC-12" if "miner" in name else "access denied"
    return (error["code"], error["message"]) in (
        ("DENIED", because),
        ("UNAUTHORIZED", "authentication required"),
        ("UNAUTHORIZED", "wrong credentials"),
    )


def settings(upstream: FakeUpstream, token: str) -> dict[str, Any]:
    entries = {
        name: {
            "url": upstream.url,
            "aliases": [f"alias-{name}"],
            "hostnames": [f"{name}.mirror.test"],
        }
        for name in ("docker.io", "ghcr.io")
    }
    return {
        "access": ACCESS,
        "hub": entries["docker.io"],
        "upstreams": {"ghcr.io": entries["ghcr.io"]},
        "freshness": {"tag_ttl": "1h", "stale_while_revalidate": 0, "negative_ttl": 0},
        "admin": {"token_file": token},
        "catalog": True,
    }


@pytest.fixture
async def world(
    start: Start, upstream: FakeUpstream, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[World]:
    token = tmp_path_factory.mktemp("secrets") / "token"
    token.write_text("secret")
    for name in set(MAY) - {ABSENT}:
        upstream.add(name.partition("/")[2], IMAGES[name], tags=["latest"])
    proxy = await start(identifier=People(), **settings(upstream, str(token)))
    base = f"http://{proxy.app.address}"
    async with AsyncExitStack() as stack:
        sessions = dict.fromkeys(PRINCIPALS, proxy.client)
        node = ClientSession(base, connector=TCPConnector(local_addr=(NODE, 0)))
        socket = UnixConnector(str(proxy.storage / "admin.sock"))
        sessions["a node"] = await stack.enter_async_context(node)
        sessions["the operator"] = await stack.enter_async_context(
            ClientSession("http://millpond", connector=socket)
        )
        yield World(proxy, upstream, sessions)


async def warm(world: World) -> None:
    """Put everything into the cache, and small things into memory."""
    for _ in range(2):
        for name in set(MAY) - {ABSENT}:
            for path in PATHS.values():
                method, rest = path(IMAGES[name])
                status, _ = await world.ask("the operator", method, f"/v2/{name}/{rest}")
                assert status == 200
            config = f"/v2/{name}/blobs/{IMAGES[name].config}"
            assert (await world.ask("the operator", "GET", config))[0] == 200
        await world.proxy.settled()
    world.upstream.clear()


async def test_nothing_differs_while_the_cache_is_cold(world: World) -> None:
    """A denied client gets its answer although upstream gives none, and leaves no trace."""
    gate = world.upstream.hold()
    denied: list[Awaitable[str | None]] = [
        world._differs(principal, name, path, spelling)
        for principal in PRINCIPALS
        for name in MAY
        for path in PATHS
        for spelling in SPELLINGS
        if allowed(principal, name) != 200
    ]
    found = [await cell for cell in denied]
    assert [cell for cell in found if cell is not None] == []
    assert not world.upstream.requests
    gate.set()
    world.upstream.heal()
    cells = [(name, path) for name in MAY for path in PATHS]
    for number, (name, path) in enumerate(cells):
        for principal in sorted(MAY[name]):
            fresh = f"{name}-{number}-{sorted(PRINCIPALS).index(principal)}"
            if name in (ABSENT, "docker.io/bad/miner"):
                continue
            image = content.image(fresh, layers=(SMALL, LARGE))
            world.upstream.add(fresh.partition("/")[2], image, tags=["latest"])
            method, rest = PATHS[path](image)
            status, _ = await world.ask(principal, method, f"/v2/{fresh}/{rest}")
            assert status == 200, (principal, fresh, path)


async def test_nothing_differs_while_the_cache_is_warm(world: World) -> None:
    await warm(world)
    assert await world.differences() == []


@pytest.mark.timeout(300)
async def test_nothing_differs_for_repeated_requests(world: World) -> None:
    """The same bytes get what their client may have, however often they were answered."""
    await warm(world)
    for _ in range(2):
        assert await world.differences() == []
    before = await world.fast()
    assert await world.differences() == []
    cells = sum(len(MAY[name] - {"the operator"}) for name in MAY if name != ABSENT)
    expected = cells * len(FAST) * len(SPELLINGS)
    assert await world.fast() - before == expected


async def test_nothing_differs_while_upstream_fails(world: World, clock: Clock) -> None:
    await warm(world)
    clock.advance(7200)
    world.upstream.fail(status=503)
    some = {name: SPELLINGS[name] for name in ("by path", "by ns")}
    assert await world.differences(some) == []


async def test_nothing_differs_offline(world: World, upstream: FakeUpstream) -> None:
    await warm(world)
    changed = settings(upstream, "/nowhere")
    await world.proxy.app.reload(
        Settings.model_validate(
            {
                "offline": True,
                "access": changed["access"],
                "upstreams": changed["upstreams"] | {"docker.io": changed["hub"]},
            }
        )
    )
    before = len(upstream.requests)
    assert await world.differences() == []
    assert len(upstream.requests) == before


async def test_nothing_differs_while_a_download_is_in_progress(world: World) -> None:
    """A denied client does not join; the others get the whole body."""
    release = world.upstream.stall(100_000, kind="blob")
    name, path = "ghcr.io/acme/app", "a large blob"
    where = world.path(name, path)
    pulls = [asyncio.create_task(world.ask("ann", "GET", where))]
    await until(lambda: world.upstream.bodies(IMAGES[name].layers[1]) == 1)
    asked = len(world.upstream.requests)
    for principal in sorted(set(PRINCIPALS) - MAY[name]):
        for method in ("GET", "HEAD"):
            status, _ = await world.ask(principal, method, where)
            assert status == allowed(principal, name), principal
    assert len(world.upstream.requests) == asked
    pulls += [asyncio.create_task(world.ask(who, "GET", where)) for who in sorted(MAY[name])]
    await until(lambda: world.proxy.app.responses() > len(MAY[name]))
    release.set()
    for status, body in await asyncio.gather(*pulls):
        assert (status, wrong_body(path, IMAGES[name], body)) == (200, "")
    assert world.upstream.bodies(IMAGES[name].layers[1]) == 1


@pytest.mark.parametrize("principal", PRINCIPALS)
async def test_only_admins_administer(world: World, principal: str) -> None:
    await warm(world)
    expected = 401 if principal in ANONYMOUS | WRONG else 403
    for method, path in (
        ("GET", "/-/images"),
        ("GET", "/-/pins"),
        ("PUT", "/-/pins?pin=docker.io/library/app:latest"),
        ("DELETE", "/-/pins?pin=docker.io/library/app:latest"),
        ("GET", "/-/fleet"),
        ("GET", "/-/in-use"),
        ("GET", "/-/evict?bytes=1"),
        ("POST", "/-/evict?bytes=1"),
        ("DELETE", "/-/images?match=none"),
        ("POST", "/-/verify"),
    ):
        status, body = await world.ask(principal, method, path)
        assert status == (200 if principal in ADMINS else expected), (path, body)
        assert principal in ADMINS or b"acme" not in body
    for path in ("/-/healthz", "/-/readyz", "/metrics", "/-/stats", "/"):
        status, body = await world.ask(principal, "GET", path)
        assert status == 200
        assert b"acme" not in body


@pytest.mark.parametrize("principal", PRINCIPALS)
async def test_statistics_name_downloads_to_admins_only(world: World, principal: str) -> None:
    release = world.upstream.stall(100_000, kind="blob")
    where = world.path("ghcr.io/acme/app", "a large blob")
    pull = asyncio.create_task(world.ask("ann", "GET", where))
    await until(lambda: bool(world.proxy.stats["downloads"]))
    status, body = await world.ask(principal, "GET", "/-/stats")
    assert (status, b"acme/app" in body) == (200, principal in ADMINS)
    release.set()
    assert (await pull)[0] == 200


@pytest.mark.parametrize("principal", PRINCIPALS)
async def test_the_catalog_has_what_one_may_pull(world: World, principal: str) -> None:
    await warm(world)
    names, path = list[str](), "/v2/_catalog?n=1"
    visible = {name for name in MAY if principal in MAY[name] and name != ABSENT}
    session, headers = world.sessions[principal], PRINCIPALS[principal]
    while path:
        async with session.get(path, headers=headers) as answer:
            if principal in WRONG | {"the admin token"}:
                assert answer.status == 401
                return
            assert answer.status == 200
            page = (await answer.json())["repositories"]
            assert len(page) <= 1
            names += page
            path = answer.headers.get("Link", "").partition(">")[0].removeprefix("<")
    assert names == sorted(visible)
