"""The response cache: equal to the general answers, only for plain requests, never outdated."""

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Self

import pytest

from proxy.core.names import Digest, Kind, Repo, Route, Target
from proxy.repository.memory_lookup import MemoryLookup
from proxy.runtime import page_cache
from proxy.web import response_cache
from proxy.web.connection import Connection
from proxy.web.response_cache import ResponseCache
from tests.access.company import People
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

pytestmark = pytest.mark.one_process

IMAGE = content.image(1, layers=(1000, 100_000, 300_000))
OTHER = content.image(2, layers=(10,))
TINY, SMALL, LARGE = IMAGE.layers
REPO = "/v2/library/app"
TAG = f"{REPO}/manifests/latest"
MANIFEST = f"{REPO}/manifests/{IMAGE.digest}"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])


def head(path: str, *lines: str, method: str = "GET", version: str = "1.1") -> bytes:
    rest = "".join(f"{line}\r\n" for line in ("Host: cache", *lines))
    return f"{method} {path} HTTP/{version}\r\n{rest}\r\n".encode()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def __getitem__(self, name: str) -> str:
        return dict(self.headers)[name]

    @property
    def lasting(self) -> list[tuple[str, str]]:
        return [pair for pair in self.headers if pair[0] not in ("Date", "X-Request-Id")]


class Line:
    """A connection on which bytes are sent as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, proxy: Proxy) -> Self:
        host, port = proxy.app.address.split(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ask(self, request: bytes) -> Answer:
        self.writer.write(request)
        return await self.answer(has_body=not request.startswith(b"HEAD"))

    async def teach(self, *requests: bytes) -> None:
        """Send each request twice, so that it is remembered."""
        for request in requests * 2:
            await self.ask(request)

    async def answer(self, *, has_body: bool = True) -> Answer:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().splitlines()[:-1]
        headers = [(name, value) for name, _, value in (line.partition(": ") for line in lines)]
        length = int(dict(headers).get("Content-Length", 0)) if has_body else 0
        return Answer(int(first.split()[1]), headers, await self.reader.readexactly(length))


@asynccontextmanager
async def line(proxy: Proxy) -> AsyncIterator[Line]:
    opened = await Line.to(proxy)
    try:
        yield opened
    finally:
        opened.writer.transport.abort()


async def at_once(proxy: Proxy) -> int:
    """How many requests the response cache has answered."""
    page = (await proxy.get("/metrics")).body.decode()
    found = re.search(r"^millpond_prepared_answers_total (\S+)$", page, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


async def fill(proxy: Proxy) -> None:
    for path in (TAG, *(f"{REPO}/blobs/{digest}" for digest in IMAGE.blobs)):
        assert (await proxy.get(path)).status == 200
    await proxy.settled()
    for digest in IMAGE.blobs:
        await proxy.get(f"{REPO}/blobs/{digest}")


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(
    "path",
    [TAG, MANIFEST, f"{REPO}/blobs/{TINY}", f"{REPO}/blobs/{SMALL}", f"{TAG}?ns=docker.io"],
    ids=["tag", "digest", "tiny", "small", "ns"],
)
async def test_it_equals_the_general_answer(proxy: Proxy, method: str, path: str) -> None:
    await fill(proxy)
    before = await at_once(proxy)
    async with line(proxy) as first, line(proxy) as second:
        for _ in range(2):
            general = await first.ask(head(path, method=method))
        assert await at_once(proxy) == before, "a request is remembered once it came twice"
        answers = [await place.ask(head(path, method=method)) for place in (first, second) * 2]
    assert await at_once(proxy) == before + 4
    for answer in answers:
        assert (answer.status, answer.lasting) == (general.status, general.lasting)
        assert len(answer["X-Request-Id"]) == 16
        assert re.fullmatch(r"\w{3}, \d\d \w{3} \d{4} \d\d:\d\d:\d\d GMT", answer["Date"])
        assert answer.body == general.body


async def test_it_is_counted_and_logged_like_the_general_answer(proxy: Proxy) -> None:
    await fill(proxy)
    counted = []
    async with line(proxy) as client:
        await client.ask(head(TAG, "User-Agent: someone/1"))
        for _ in range(2):
            before = proxy.numbers
            await client.ask(head(TAG, "User-Agent: someone/1"))
            after = proxy.numbers
            names = ("requests", "hits", "bytes_to_clients", "pulls_saved", "bytes_saved")
            counted.append([after[name] - before[name] for name in names])
    await until(lambda: proxy.log.getvalue().count("someone/1") == 3)
    lines = [json.loads(text) for text in proxy.log.getvalue().splitlines() if "someone/1" in text]
    size = len(IMAGE.manifest)
    assert counted == [[1, 1, size, 1, size]] * 2
    assert await at_once(proxy) == 1
    _, general, ready = lines
    assert general.keys() == ready.keys()
    assert {name for name in ready if ready[name] != general[name]} <= {
        "timestamp",
        "seconds",
        "request_id",
    }
    assert (ready["client"], ready["outcome"], ready["bytes"]) == ("127.0.0.1", "hit", size)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(TAG, f'If-None-Match: "{OTHER.digest}"'), 200),
        (head(TAG, f'If-None-Match: "{IMAGE.digest}"'), 304),
        (head(TAG, "Cache-Control: no-cache"), 200),
        (head(TAG, "Cache-Control: only-if-cached"), 200),
        (head(TAG, "Authorization: Basic c2VjcmV0"), 200),
        (head(TAG, "Cookie: secret"), 200),
        (head(TAG, f"X-Long: {'x' * response_cache.MAX_REQUEST_BYTES}"), 200),
        (head(f"{REPO}/blobs/{TINY}", "Range: bytes=1-2"), 206),
        (head(f"{REPO}/blobs/{TINY}", "Range: bytes=1-2", 'If-Range: "other"'), 200),
        (head(f"{REPO}/blobs/{LARGE}"), 200),
        (head(f"{REPO}/manifests/absent"), 404),
        (head("/v2/"), 200),
        (head(f"{REPO}/tags/list"), 200),
        (head(TAG, "Content-Length: 2") + b"{}", 200),
        (head(TAG, method="POST"), 405),
    ],
)
async def test_what_is_not_plain_goes_the_general_way(
    proxy: Proxy, request_head: bytes, status: int
) -> None:
    await fill(proxy)
    async with line(proxy) as client:
        for _ in range(4):
            assert (await client.ask(request_head)).status == status
    assert await at_once(proxy) == 0


@pytest.mark.parametrize(
    "request_head", [head(TAG, version="1.0"), head(TAG, "Connection: close")], ids=["1.0", "close"]
)
async def test_a_connection_that_shall_close_is_closed(proxy: Proxy, request_head: bytes) -> None:
    await fill(proxy)
    for _ in range(4):
        async with line(proxy) as client:
            assert (await client.ask(request_head)).body == IMAGE.manifest
            assert await client.reader.read() == b""
    assert await at_once(proxy) == 0


async def test_http_1_0_that_keeps_alive_is_told_so(proxy: Proxy) -> None:
    await fill(proxy)
    async with line(proxy) as client:
        for _ in range(4):
            answer = await client.ask(head(TAG, "Connection: keep-alive", version="1.0"))
            assert answer["Connection"] == "keep-alive"
    assert await at_once(proxy) == 0


async def test_an_answer_in_progress_is_not_overtaken(proxy: Proxy, upstream: FakeUpstream) -> None:
    await fill(proxy)
    upstream.add("library/app", OTHER, tags=["other"])
    gate = upstream.hold(reference="other")
    async with line(proxy) as client:
        await client.teach(head(TAG))
        client.writer.write(head(f"{REPO}/manifests/other"))
        await upstream.until(lambda: upstream.count(ref="other") > 0)
        client.writer.write(head(TAG))
        await asyncio.sleep(0.05)
        gate.set()
        assert (await client.answer()).body == OTHER.manifest
        assert (await client.answer()).body == IMAGE.manifest
    assert await at_once(proxy) == 0


async def test_a_header_that_looks_like_a_request_is_none(proxy: Proxy) -> None:
    await fill(proxy)
    async with line(proxy) as client:
        await client.teach(head(TAG))
        client.writer.write(f"GET {REPO}/manifests/absent HTTP/1.1\r\nX-Quote: ".encode())
        await asyncio.sleep(0.05)
        client.writer.write(head(TAG))
        assert (await client.answer()).status == 404
        assert (await client.ask(head(TAG))).body == IMAGE.manifest
    assert await at_once(proxy) == 1


async def add_other(proxy: Proxy, upstream: FakeUpstream, repo: str = "library/app") -> str:
    """Have another image in the cache, and return the path of its tag."""
    upstream.add(repo, OTHER, tags=["other"])
    path = f"/v2/{repo}/manifests/other"
    assert (await proxy.get(path)).status == 200
    await proxy.settled()
    return path


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("query", ["", "?ns=docker.io"])
async def test_another_path_is_answered_at_its_first_time(
    proxy: Proxy, upstream: FakeUpstream, method: str, query: str
) -> None:
    await fill(proxy)
    path = await add_other(proxy, upstream, "org/else") + query
    async with line(proxy) as client:
        general = await client.ask(head(path, "X-Other: 1", method=method))
        for _ in range(2):
            await client.ask(head(TAG, method=method))
        assert await at_once(proxy) == 0
        answers = [await client.ask(head(path, method=method)) for _ in range(3)]
    assert await at_once(proxy) == 3
    for answer in answers:
        assert (answer.status, answer.lasting) == (general.status, general.lasting)
        assert answer.body == general.body


async def test_another_path_is_counted_and_logged_like_the_general_answer(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await fill(proxy)
    path = await add_other(proxy, upstream)
    async with line(proxy) as client:
        await client.ask(head(path, "User-Agent: someone/1", "X-Other: 1"))
        await client.teach(head(TAG, "User-Agent: someone/1"))
        await client.ask(head(path, "User-Agent: someone/1"))
    assert await at_once(proxy) == 1
    await until(lambda: proxy.log.getvalue().count("someone/1") == 4)
    lines = [json.loads(text) for text in proxy.log.getvalue().splitlines() if "someone/1" in text]
    general, ready = lines[0], lines[-1]
    own = {"timestamp", "seconds", "request_id"}
    assert {name: general[name] for name in general.keys() - own} == {
        name: ready[name] for name in ready.keys() - own
    }


async def test_another_method_or_path_is_not_understood_by_its_headers(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await fill(proxy)
    path = await add_other(proxy, upstream)
    absent = f"{REPO}/manifests/absent"
    for request, status in (
        (head(path, method="HEAD"), 200),
        (head(path, method="POST"), 405),
        (head(path, "Cache-Control: no-cache"), 200),
        (head(absent), 404),
        (head(path.replace("other", "%6fther")), 200),
        (head(path.replace("/v2/", "/v2/as-of/2020-01-01/")), 404),
        (head(f"{path}?ns=nowhere.example"), 404),
        (head(f"{REPO}/blobs/{LARGE}"), 200),
        (head(f"{REPO}/tags/list"), 200),
        (head("/v2/../v2/library/app/manifests/x"), 400),
        (head(f"{REPO}/manifests/not:valid"), 400),
    ):
        async with line(proxy) as client:
            await client.teach(head(TAG))
            before = await at_once(proxy)
            has_body = not request.startswith(b"HEAD")
            client.writer.write(request)
            assert (await client.answer(has_body=has_body)).status == status, request
            assert await at_once(proxy) == before, request


async def with_other_in_page_cache(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> tuple[Proxy, str]:
    """A proxy that has just started and may read another image's rows, and the path of its tag."""
    monkeypatch.setattr(page_cache, "share", lambda fd, size: 1.0)
    first = await start()
    await fill(first)
    path = await add_other(first, upstream)
    await first.close()
    proxy = await start()
    await proxy.app.content._index._facts.file.look()  # type: ignore[attr-defined]
    return proxy, path


async def test_another_path_is_answered_from_the_page_cache(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, path = await with_other_in_page_cache(start, upstream, monkeypatch)
    asked = len(upstream.requests)
    async with line(proxy) as client:
        await client.teach(head(TAG))
        assert (await client.ask(head(path))).body == OTHER.manifest
    assert await at_once(proxy) == 1
    assert len(upstream.requests) == asked


async def test_bytes_from_the_page_cache_are_verified(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy, path = await with_other_in_page_cache(start, upstream, monkeypatch)
    file = proxy.storage / "blobs" / "sha256" / OTHER.digest.partition(":")[2]
    file.write_bytes(OTHER.manifest[:-1] + b" ")
    async with line(proxy) as client:
        await client.teach(head(TAG))
        assert (await client.ask(head(path))).body == OTHER.manifest, "fetched again"
    assert await at_once(proxy) == 0


async def test_only_what_is_linked_is_at_hand(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    built: list[MemoryLookup] = []
    construct = MemoryLookup.__init__

    def watched(self: MemoryLookup, *rooms: Any) -> None:
        construct(self, *rooms)
        built.append(self)

    monkeypatch.setattr(MemoryLookup, "__init__", watched)
    await fill(await start())
    for repo, is_found in (("library/app", True), ("library/thief", False)):
        for kind, ref in ((Kind.BLOB, TINY), (Kind.MANIFEST, IMAGE.digest)):
            route = Route(kind, Repo(repo), ref)
            found = built[0].get(Target("docker.io", Repo(repo)), route)
            assert (found is not None) == is_found


async def test_pipelined_and_broken_up_requests_are_answered_in_order(proxy: Proxy) -> None:
    await fill(proxy)
    tag, tiny = head(TAG), head(f"{REPO}/blobs/{TINY}")
    large = head(f"{REPO}/blobs/{LARGE}")
    bodies = {tag: IMAGE.manifest, tiny: IMAGE.blobs[TINY], large: IMAGE.blobs[LARGE]}
    async with line(proxy) as client:
        await client.teach(tag, tiny)
        for pieces in 2 * (
            [tag + tiny, large + tag],
            [large, tag, tiny],
            [tag[:20], tag[20:] + tiny],
            [tag + tiny[:-1], tiny[-1:], tag],
            [b"\r\n" + tag, tiny],
            [tag, tiny],
        ):
            for piece in pieces:
                client.writer.write(piece)
                await asyncio.sleep(0.01)
            asked = b"".join(pieces).strip().split(b"\r\n\r\n")
            for request in asked:
                expected = bodies[request.strip() + b"\r\n\r\n"]
                assert (await client.answer()).body == expected
    assert await at_once(proxy) >= 2


async def test_a_body_that_looks_like_a_request_is_none(proxy: Proxy) -> None:
    await fill(proxy)
    async with line(proxy) as client:
        await client.teach(head(TAG))
        posted = head(TAG, f"Content-Length: {len(head(TAG))}", method="POST")
        client.writer.write(posted)
        await asyncio.sleep(0.05)
        client.writer.write(head(TAG))
        assert (await client.answer()).status == 405
        assert (await client.ask(head(MANIFEST))).body == IMAGE.manifest
    assert await at_once(proxy) == 0


async def test_the_age_of_a_tag_is_told_anew_each_time(proxy: Proxy, clock: Clock) -> None:
    await fill(proxy)
    async with line(proxy) as client:
        await client.teach(head(TAG))
        told = []
        for _ in range(3):
            clock.advance(7)
            told.append((await client.ask(head(TAG)))["Cache-Status"])
    assert told == [f"Millpond; hit; ttl={ttl}" for ttl in (293, 286, 279)]
    assert await at_once(proxy) == 3


async def test_a_tag_that_has_moved_is_not_answered_as_before(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    await fill(proxy)
    async with line(proxy) as client:
        for _ in range(3):
            await client.ask(head(TAG))
        upstream.add("library/app", OTHER, tags=["latest"])
        clock.advance(300 + 3600)
        moved = await client.ask(head(TAG))
        assert (moved.body, await at_once(proxy)) == (OTHER.manifest, 1)
        again = await client.ask(head(TAG))
        assert (again.body, await at_once(proxy)) == (OTHER.manifest, 2)
        assert again["Docker-Content-Digest"] == OTHER.digest
        assert again["Content-Length"] == str(len(OTHER.manifest))


@pytest.mark.parametrize("path", [TAG, MANIFEST, f"{REPO}/blobs/{TINY}"])
async def test_evicted_content_is_not_served_from_ram(
    proxy: Proxy, upstream: FakeUpstream, path: str
) -> None:
    await fill(proxy)
    digest = TINY if TINY in path else IMAGE.digest
    async with line(proxy) as client:
        for _ in range(3):
            await client.ask(head(path))
        assert await at_once(proxy) == 1
        await proxy.app.content.evictor.discard([Digest(digest)])
        upstream.remove("library/app")
        asked = len(upstream.requests)
        assert (await client.ask(head(path))).status == 404
        assert (await proxy.get(path)).status == 404
    assert await at_once(proxy) == 1
    assert len(upstream.requests) > asked


async def test_what_another_repository_holds_is_not_served(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await fill(proxy)
    upstream.add("library/thief", OTHER)
    stolen = f"/v2/library/thief/blobs/{TINY}"
    async with line(proxy) as client:
        for _ in range(4):
            assert (await client.ask(head(stolen))).status == 404


async def test_offline_a_manifest_is_answered_the_general_way(start: Start) -> None:
    online = await start()
    await fill(online)
    await online.close()
    proxy = await start(offline=True)
    async with line(proxy) as client:
        for _ in range(4):
            assert (await client.ask(head(MANIFEST))).status == 200
    assert await at_once(proxy) == 0


async def test_a_slow_reader_is_waited_for(proxy: Proxy) -> None:
    await fill(proxy)
    path = head(f"{REPO}/blobs/{SMALL}")
    size, count = len(IMAGE.blobs[SMALL]), 400
    async with line(proxy) as client:
        await client.teach(path)
    host, port = proxy.app.address.split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16384)
        slow.connect((host, int(port)))
        for _ in range(count):
            before = proxy.numbers["bytes_to_clients"]
            slow.send(path)
            for _ in range(50):
                await asyncio.sleep(0.001)
                if proxy.numbers["bytes_to_clients"] > before:
                    break
            else:
                break
        assert proxy.numbers["bytes_to_clients"] < count * size / 2
    assert await at_once(proxy) > 0


async def test_requests_known_are_bounded(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(response_cache, "MAX_REQUESTS", 2)
    await fill(proxy)
    async with line(proxy) as client:
        for number in range(4):
            await client.teach(head(TAG, f"User-Agent: {number}"))
        assert await at_once(proxy) == 0
        for number in (3, 2):
            await client.ask(head(TAG, f"User-Agent: {number}"))
        assert await at_once(proxy) == 2
        await client.ask(head(TAG, "User-Agent: 0"))
        assert await at_once(proxy) == 2


def connections(client: Line) -> list[Connection]:
    """Return the other side of a connection."""
    frames = [task.get_coro().cr_frame for task in asyncio.all_tasks()]
    held = [frame.f_locals.get("self") for frame in frames if frame is not None]
    own = client.writer.get_extra_info("sockname")
    return [it for it in held if isinstance(it, Connection) and it.peername == own]


@pytest.mark.parametrize("name", ["Authorization", "authorization"])
async def test_credentials_of_remembered_requests_are_not_kept(
    start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    made: list[ResponseCache] = []
    learn = ResponseCache.learn
    monkeypatch.setattr(
        ResponseCache, "learn", lambda self, exchange: (made.append(self), learn(self, exchange))
    )
    proxy = await start(identifier=People(), access={"rules": [{"allow": "pull"}]})
    request = head(TAG, f"{name}: Bearer ann")
    async with line(proxy) as client:
        await client.teach(request)
        await client.ask(request)
        assert await at_once(proxy) == 1
        kept = repr((made[0]._requests, made[0]._seen_once))
        assert "library/app" in kept
        assert "Bearer ann" not in kept.replace(repr(b"Bearer ann"), ""), "but for the fake's hash"
        assert [connection.head for connection in connections(client)] == [None]


@pytest.mark.parametrize("name", ["AUTHORIZATION", "AuthoriZation"])
async def test_credentials_that_would_be_kept_are_not_remembered(start: Start, name: str) -> None:
    proxy = await start(identifier=People(), access={"rules": [{"allow": "pull"}]})
    async with line(proxy) as client:
        await client.teach(request := head(TAG, f"{name}: Bearer ann"))
        await client.ask(request)
        assert await at_once(proxy) == 0


async def test_a_busy_connection_is_not_closed_as_idle(proxy: Proxy) -> None:
    await fill(proxy)
    async with line(proxy) as client:
        await client.teach(head(TAG))
        [connection] = connections(client)
        connection._next_keepalive_close_time = 0.0
        await client.ask(head(TAG))
        assert await at_once(proxy) == 1
        assert connection._next_keepalive_close_time > asyncio.get_running_loop().time()


async def test_the_next_request_may_come_before_aiohttp_waits_for_it(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(proxy)
    finish, following = Connection.finish_response, [head(TAG)]
    async with line(proxy) as it:
        await it.teach(head(TAG))
        before = await at_once(proxy)

        async def finished(self: Connection, *args: Any) -> Any:
            found = await finish(self, *args)
            it.writer.write(following.pop())
            return found

        monkeypatch.setattr(Connection, "finish_response", finished)
        first = await it.ask(head(TAG, 'If-None-Match: "other"'))
        monkeypatch.undo()
        second = await it.answer()
        assert (first.status, second.status) == (200, 200)
        assert first.body == second.body == IMAGE.manifest
        assert await at_once(proxy) == before + 1


async def test_after_the_last_response_of_a_connection_nothing_is_answered(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(proxy)
    finish, following = Connection.finish_response, [head(TAG)]
    async with line(proxy) as it:
        await it.teach(head(TAG))
        before = await at_once(proxy)

        async def finished(self: Connection, *args: Any) -> Any:
            found = await finish(self, *args)
            it.writer.write(following.pop())
            return found

        monkeypatch.setattr(Connection, "finish_response", finished)
        first = await it.ask(head(TAG, "Connection: close"))
        monkeypatch.undo()
        assert first.status == 200
        assert await it.reader.read() == b""
        assert await at_once(proxy) == before
