"""The operator's pages under ``/-/``: authorization, requests and answers."""

import asyncio
import io
import json
import stat
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, UnixConnector

from proxy.core.errors import StorageError, StorageUnavailable
from proxy.web.admin import documents, images
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start, started

BLOCK = 4096
IMAGE = content.image(1)
OTHER = content.image(2)
APP, TOOL = "docker.io/library/app:latest", "docker.io/library/tool:latest"
PAGES = {
    "/-/images": {"GET", "DELETE"},
    "/-/refresh": {"POST"},
    "/-/pull": {"POST"},
    "/-/pins": {"GET", "PUT", "DELETE"},
    "/-/fleet": {"GET"},
    "/-/in-use": {"GET", "PUT"},
    "/-/evict": {"GET", "POST"},
    "/-/verify": {"POST"},
}
EVERY = [(method, page) for page, methods in PAGES.items() for method in sorted(methods)]


class Operator:
    """Whoever reaches the admin socket."""

    def __init__(self, session: ClientSession) -> None:
        self.session = session

    async def ask(
        self, method: str, page: str, body: bytes | io.BytesIO | None = None, **query: str
    ) -> Answer:
        url = f"http://millpond/-/{page}"
        async with self.session.request(method, url, params=query, data=body) as response:
            return Answer(response.status, response.headers, await response.read())

    async def told(self, method: str, page: str, body: bytes | None = None, **query: str) -> Any:
        """Return the document of an answer that must be good."""
        answer = await self.ask(method, page, body, **query)
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"].startswith("application/json")
        return json.loads(answer.body)

    async def lines(self, method: str, page: str, **query: str) -> list[dict[str, Any]]:
        """Return the documents of a stream that must be good."""
        answer = await self.ask(method, page, **query)
        assert answer.status == 200, answer.body
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        return [json.loads(line) for line in answer.body.splitlines()]


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", IMAGE)
    upstream.add("library/tool", OTHER)
    return await start()


@pytest.fixture
async def operator(proxy: Proxy) -> AsyncIterator[Operator]:
    async with ClientSession(connector=UnixConnector(str(proxy.storage / "admin.sock"))) as session:
        yield Operator(session)


async def pull(proxy: Proxy, name: str, image: content.Image) -> None:
    assert (await proxy.get(f"/v2/{name}/manifests/latest")).status == 200
    for digest in image.blobs:
        assert (await proxy.get(f"/v2/{name}/blobs/{digest}")).status == 200
    await proxy.settled()


def error(answer: Answer) -> dict[str, str]:
    [only] = json.loads(answer.body)["errors"]
    assert only["code"]
    return dict(only)


# Who may


async def test_the_socket_lies_in_the_cache_for_its_owner_alone_and_goes_with_the_proxy(
    proxy: Proxy,
) -> None:
    status = (proxy.storage / "admin.sock").stat()
    assert stat.S_ISSOCK(status.st_mode)
    assert stat.S_IMODE(status.st_mode) == 0o600
    assert stat.S_IMODE(proxy.storage.stat().st_mode) == 0o700
    await proxy.close()
    assert not (proxy.storage / "admin.sock").exists()


async def test_what_a_killed_process_left_in_the_place_of_the_socket_is_replaced(
    start: Start, tmp_path: Path
) -> None:
    place = tmp_path / "cache/admin.sock"
    place.parent.mkdir()
    place.write_text("left")
    await start()
    assert stat.S_ISSOCK(place.stat().st_mode)


async def test_a_path_that_is_too_long_for_a_socket(
    upstream: FakeUpstream, clock: Clock, tmp_path: Path
) -> None:
    storage = tmp_path / ("x" * 120) / "cache"
    async with started(upstream, storage, clock, {}):
        assert stat.S_ISSOCK((storage / "admin.sock").stat().st_mode)


async def test_no_socket_when_it_is_not_wanted(start: Start) -> None:
    proxy = await start(admin={"socket": False})
    assert not (proxy.storage / "admin.sock").exists()


async def test_the_socket_serves_all_the_rest_as_well(operator: Operator, proxy: Proxy) -> None:
    for path in ("/-/stats", "/-/healthz", "/metrics", "/v2/app/manifests/latest"):
        async with operator.session.get(f"http://millpond{path}") as response:
            assert response.status == 200, path


@pytest.mark.parametrize(("method", "page"), EVERY)
async def test_over_tcp_nobody_is_trusted_without_a_token(
    proxy: Proxy, method: str, page: str
) -> None:
    answer = await proxy.ask(method, page, Authorization="Bearer anything")
    assert answer.status == 403
    assert "admin.token_file" in error(answer)["message"]
    assert "WWW-Authenticate" not in answer.headers


@pytest.mark.parametrize(("method", "page"), EVERY)
async def test_over_tcp_the_token_is_asked_for(
    start: Start, tmp_path: Path, method: str, page: str
) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    proxy = await start(admin={"token_file": str(file)})
    for wrong in ({}, {"Authorization": "Bearer s3cre"}, {"Authorization": "Bearer "}, {"Authorization": "Basic s3cret"}, {"Authorization": "s3cret"}, {"Authorization": "Bearer s3cretx"}):  # fmt: skip
        answer = await proxy.ask(method, page, **wrong)
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="millpond"'
        assert error(answer)["code"] == "UNAUTHORIZED"
        assert b"s3cret" not in answer.body
    answer = await proxy.ask(method, page, Authorization="Bearer s3cret")
    assert answer.status in (200, 400), answer.body
    assert "s3cret" not in proxy.log.getvalue()


async def test_a_token_that_is_changed_counts_at_once_and_an_empty_one_never(
    start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    proxy = await start(admin={"token_file": str(file)})

    async def status(token: str) -> int:
        return (await proxy.get("/-/pins", Authorization=f"Bearer {token}")).status

    assert await status("first") == 200
    file.write_text("second")
    assert (await status("first"), await status("second")) == (401, 200)
    file.write_text(" \n")
    assert (await status(""), await status("second")) == (401, 401)
    file.unlink()
    answer = await proxy.get("/-/pins", Authorization="Bearer second")
    assert answer.status == 403
    assert "cannot be read: No such file" in error(answer)["message"]


@pytest.mark.parametrize("page", PAGES)
async def test_what_cannot_be_done_with_a_page_says_what_can(operator: Operator, page: str) -> None:
    for method in {"GET", "HEAD", "PUT", "POST", "DELETE", "PATCH"} - PAGES[page]:
        answer = await operator.ask(method, page.removeprefix("/-/"))
        assert answer.status == 405, method
        assert set(answer.headers["Allow"].split(", ")) == PAGES[page]


async def test_there_is_no_such_page(operator: Operator) -> None:
    assert (await operator.ask("GET", "pin")).status == 404
    assert (await operator.ask("GET", "pins/")).status == 404


@pytest.mark.parametrize(
    ("method", "page", "query", "says"),
    [
        ("PUT", "pins", {}, "?pin="),
        ("PUT", "pins", {"pin": ""}, "?pin="),
        ("PUT", "pins", {"pin": "App"}, "not a repository name"),
        ("PUT", "pins", {"pin": "app@sha256:1"}, "sha256 digest has 64"),
        ("DELETE", "pins", {}, "?pin="),
        ("GET", "evict", {}, "?bytes="),
        ("GET", "evict", {"bytes": "many"}, "bytes: 'many' is not a size"),
        ("GET", "evict", {"bytes": "1", "tier": "tape"}, "tier is disk or bucket"),
        ("POST", "evict", {"bytes": "1", "tier": "bucket"}, "no bucket is configured"),
        ("POST", "evict", {}, "?bytes="),
        ("DELETE", "images", {}, "?match="),
        ("DELETE", "images", {"match": "A"}, "not a repository name"),
        ("DELETE", "images", {"match": "app", "dry_run": "1"}, "dry_run is true or false"),
        ("POST", "refresh", {"image": f"app@{IMAGE.digest}"}, "a digest never changes"),
        ("POST", "pull", {"image": IMAGE.digest}, "name the repository too"),
        ("POST", "evict", {"bytes": "-1"}, "not a size"),
        ("POST", "verify", {"rate": "fast"}, "rate: 'fast' is not a size"),
        ("POST", "verify", {"repair": "yes"}, "repair is true or false"),
        ("POST", "verify", {"restart": "1"}, "restart is true or false"),
        ("PUT", "in-use", {"ttl": "soon"}, "ttl is a number of seconds"),
        ("PUT", "in-use", {"ttl": "nan"}, "ttl is a number of seconds"),
    ],
)
async def test_what_is_asked_wrongly_is_refused_with_what_is_right(
    operator: Operator, method: str, page: str, query: dict[str, str], says: str
) -> None:
    answer = await operator.ask(method, page, **query)
    assert answer.status == 400
    assert says in error(answer)["message"]


# What is answered


async def test_images(operator: Operator, proxy: Proxy, clock: Clock) -> None:
    assert await operator.lines("GET", "images") == []
    await pull(proxy, "app", IMAGE)
    used = clock()
    clock.advance(10)
    assert (await proxy.get("/v2/tool/manifests/latest")).status == 200
    await operator.told("PUT", "pins", pin="app")
    await operator.told("PUT", "in-use", b"tool\n")
    app = {
        "name": APP,
        "digest": IMAGE.digest,
        "media_type": IMAGE.media_type,
        "state": "whole",
        "held_bytes": 4 * BLOCK,
        "missing": 0,
        "last_used": used,
        "checked_at": used,
        "pinned": True,
        "in_use": False,
    }
    tool = app | {
        "name": TOOL,
        "digest": OTHER.digest,
        "state": "partial",
        "held_bytes": BLOCK,
        "missing": 3,
        "last_used": used + 10,
        "checked_at": used + 10,
        "pinned": False,
        "in_use": True,
    }
    assert await operator.lines("GET", "images") == [app, tool]
    assert await operator.lines("GET", "images", match="*/tool:*") == [tool]
    assert await operator.lines("GET", "images", match="nothing") == []
    await operator.told("POST", "evict", bytes="1MB")
    assert [line["state"] for line in await operator.lines("GET", "images")] == ["whole", "partial"]
    await operator.told("PUT", "in-use", b"")
    await operator.told("POST", "evict", bytes="1MB")
    [_, tool] = await operator.lines("GET", "images")
    assert (tool["state"], tool["missing"], tool["last_used"]) == ("absent", 1, None)


async def test_more_images_than_one_write_takes(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "FLUSH_LINES", 3)
    names = [f"v{number}" for number in range(20)]
    upstream.add("library/app", IMAGE, names)
    for name in names:
        assert (await proxy.get(f"/v2/app/manifests/{name}")).status == 200
    found = [line["name"] for line in await operator.lines("GET", "images")]
    assert found == sorted(f"docker.io/library/app:{name}" for name in names)


async def test_pins(start: Start, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.add("library/tool", OTHER)
    proxy = await start(storage={"max_size": 6 * BLOCK}, pins=["app"])
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        operator = Operator(session)
        await pull(proxy, "app", IMAGE)
        configured = {
            "pin": APP,
            "source": "configured",
            "images": 1,
            "bytes": 4 * BLOCK,
            "refused": None,
        }
        told = {"pins": [configured], "bytes": 4 * BLOCK, "limit_bytes": 6 * BLOCK}
        assert await operator.told("GET", "pins") == told
        added = {"pin": "docker.io/library/x:1", "source": "added", "images": 0, "bytes": 0}
        for _ in range(2):
            assert await operator.told("PUT", "pins", pin="x:1") == added | {"refused": None}
        assert (await proxy.get("/v2/tool/manifests/latest")).status == 200
        refused = await operator.ask("PUT", "pins", pin="tool")
        assert refused.status == 409
        assert error(refused)["message"] == (
            f"{TOOL} needs {4 * BLOCK} bytes; {4 * BLOCK} are pinned, and {6 * BLOCK} may be"
        )
        assert (await operator.ask("DELETE", "pins", pin="app")).status == 409
        assert (await operator.ask("DELETE", "pins", pin="y")).status == 404
        assert await operator.told("DELETE", "pins", pin="x:1") == {
            "pin": "x:1",
            "removed": ["docker.io/library/x:1"],
        }
        assert (await operator.ask("DELETE", "pins", pin="x:1")).status == 404
        assert await operator.told("GET", "pins") == told
        assert (await operator.ask("PUT", "pins", pin="example.com/x")).status == 404


async def test_in_use(operator: Operator, clock: Clock) -> None:
    body = f"nginx\n# a comment\nBad Name\nghcr.io/a/b:1@{IMAGE.digest}\n".encode()
    told = await operator.told("PUT", "in-use", body, source="node1", ttl="60")
    assert told == {
        "source": "node1",
        "images": 2,
        "expires_at": clock() + 60,
        "not_understood": ["line 3: 'Bad Name' is not a repository name"],
    }
    assert (await operator.told("PUT", "in-use", b"x"))["expires_at"] == clock() + 3600
    assert (await operator.told("PUT", "in-use", b"x", ttl="1e9"))["expires_at"] == (
        clock() + 7 * 86400
    )
    await operator.told("PUT", "in-use", b"", ttl="1")
    assert await operator.told("GET", "in-use") == {
        "feeds": [
            {"source": "node1", "images": 2, "expires_at": clock() + 60},
            {"source": "default", "images": 0, "expires_at": clock() + 1},
        ],
        "images": ["docker.io/library/nginx:latest", f"ghcr.io/a/b@{IMAGE.digest}"],
    }
    clock.advance(61)
    assert await operator.told("GET", "in-use") == {"feeds": [], "images": []}
    assert (await operator.ask("PUT", "in-use", b"\xff")).status == 400
    assert (await operator.ask("PUT", "in-use", io.BytesIO(bytes(4 * 1024**2 + 1)))).status == 400
    assert (await operator.ask("PUT", "in-use", b"x\n" * 10_001)).status == 400


async def test_what_would_be_evicted_is_told_coldest_first_and_then_goes(
    operator: Operator, proxy: Proxy, clock: Clock
) -> None:
    await pull(proxy, "app", IMAGE)
    clock.advance(10)
    await pull(proxy, "tool", OTHER)
    await operator.told("PUT", "pins", pin="tool")
    *lines, image, total = await operator.lines("GET", "evict", bytes=str(3 * BLOCK))
    for line in (lines[0], image):  # uses in one instant are kept in their order
        line["last_used"] = round(line["last_used"], 1)
    assert image == {
        "image": APP,
        "state": "absent",
        "blobs": 3,
        "bytes": 3 * BLOCK,
        "last_used": clock() - 10,
    }
    assert total == {"blobs": 3, "bytes": 3 * BLOCK}
    assert lines[0] == {
        "digest": IMAGE.digest,
        "size": len(IMAGE.manifest),
        "disk_bytes": BLOCK,
        "media_type": IMAGE.media_type,
        "last_used": clock() - 10,
    }
    before = proxy.held()
    assert await operator.told("POST", "evict", bytes=str(3 * BLOCK)) == total
    assert before - proxy.held() == {line["digest"] for line in lines}
    rest = await operator.lines("GET", "evict", bytes="1GB")
    assert rest[-1] == {"blobs": 1, "bytes": BLOCK}, "the pinned one is not among it"
    assert await operator.lines("GET", "evict", bytes="0") == [{"blobs": 0, "bytes": 0}]


async def test_verify(operator: Operator, proxy: Proxy) -> None:
    await pull(proxy, "app", IMAGE)
    (proxy.storage / "blobs/sha256" / IMAGE.layers[0].removeprefix("sha256:")).write_bytes(b"")
    start, bad, done = await operator.lines("POST", "verify", repair="true", rate="500MB/s")
    assert start == {"event": "start", "blobs": 4, "bytes": 4 * BLOCK, "resumed": False}
    assert (bad["digest"], bad["repaired"], bad["images"]) == (IMAGE.layers[0], True, [APP])
    assert (done["event"], done["bad"], done["repaired"]) == ("done", 1, 1)
    start, done = await operator.lines("POST", "verify")
    assert (done["blobs"], done["bad"]) == (4, 0)


async def test_one_verification_at_a_time_and_one_whose_client_has_left_ends(
    operator: Operator, proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, "app", IMAGE)
    big = upstream.add_blob("library/app", content.blob(3_000_000))
    assert (await proxy.get(f"/v2/app/blobs/{big}")).status == 200
    await proxy.settled()
    url = "http://millpond/-/verify?rate=100000"
    leaving = await operator.session.post(url)
    started_with = json.loads(await leaving.content.readline())
    assert started_with["event"] == "start", "told at once, though the first blob takes 30 s"
    assert proxy.stats["cache"]["verified_blobs"] < 5
    refused = await operator.ask("POST", "verify")
    assert refused.status == 409
    assert "a verification is running" in error(refused)["message"]
    leaving.close()
    async with asyncio.timeout(30):
        while (answer := await operator.ask("POST", "verify")).status == 409:
            await asyncio.sleep(0.01)
    lines = [json.loads(line) for line in answer.body.splitlines()]
    assert (lines[-1]["event"], lines[-1]["blobs"]) == ("done", 5)
    assert "internal" not in proxy.log.getvalue()


async def test_a_client_that_leaves_a_long_list_does_no_harm(
    operator: Operator, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(documents, "FLUSH_LINES", 1)
    await pull(proxy, "app", IMAGE)
    for page in ("images", "evict?bytes=1GB"):
        response = await operator.session.get(f"http://millpond/-/{page}")
        response.close()
    assert len(await operator.lines("GET", "images")) == 1
    assert '"level": "error"' not in proxy.log.getvalue()


async def test_offline_a_refresh_is_refused_and_nobody_is_asked(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(offline=True)
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        answer = await Operator(session).ask("POST", "refresh", image="app:latest")
    assert answer.status == 409
    assert b"offline" in answer.body
    assert not upstream.requests


def failing(after: int, error: Exception) -> Callable[..., AsyncGenerator[dict[str, Any]]]:
    async def listed(*_: object, **__: object) -> AsyncGenerator[dict[str, Any]]:
        for number in range(after):
            yield {"name": str(number)}
        raise error

    return listed


@pytest.mark.parametrize("error", [StorageError("the disk"), StorageUnavailable("no")], ids=repr)
async def test_a_failure_in_the_middle_of_a_list_ends_the_connection(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(images, "described", failing(2 * documents.FLUSH_LINES, error))
    async with asyncio.timeout(20):
        with pytest.raises(ClientError):
            await operator.ask("GET", "images")


async def test_a_disk_that_fails_is_an_error_of_the_page_and_of_the_audit_log(
    start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    audit = tmp_path / "audit.jsonl"
    proxy = await start(access={"audit_file": str(audit)})
    monkeypatch.setattr(images, "described", failing(0, StorageError("/a/path: bad")))
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with ClientSession(connector=connector) as session:
        answer = await Operator(session).ask("GET", "images")
    assert answer.status == 503
    assert json.loads(answer.body)["errors"][0]["code"] == "UNAVAILABLE"
    assert b"/a/path" not in answer.body
    assert "/a/path: bad" in proxy.log.getvalue()
    await proxy.close()
    assert "cannot be read or written" in audit.read_text()
