"""The answers under /v2/, header by header."""

import asyncio
import json

import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import body as spoilt
from tests.fakes.faults import header
from tests.fakes.upstream import FakeUpstream
from tests.leaks import at_rest, working
from tests.running import Proxy, Start

IMAGE = content.image(1, layers=(2048,))
[LAYER] = IMAGE.layers
DATA = IMAGE.blobs[LAYER]
MANIFEST = "/v2/library/app/manifests/latest"
BLOB = f"/v2/library/app/blobs/{LAYER}"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE, tags=["latest", "v1", "v2"])


def code(body: bytes) -> str:
    [error] = json.loads(body)["errors"]
    return str(error["code"])


@pytest.mark.parametrize("path", ["/v2/", "/v2", "/v2/?ns=docker.io"])
async def test_the_base(proxy: Proxy, path: str) -> None:
    for answer in (await proxy.get(path), await proxy.head(path)):
        assert answer.status == 200
        assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"
        assert "WWW-Authenticate" not in answer.headers


async def test_a_manifest(proxy: Proxy) -> None:
    for ref in ("latest", IMAGE.digest):
        for _ in range(2):
            path = f"/v2/library/app/manifests/{ref}"
            got, head = await proxy.get(path), await proxy.head(path)
            assert (got.status, got.body) == (200, IMAGE.manifest)
            assert (head.status, head.body) == (200, b"")
            for answer in (got, head):
                assert answer.headers["Content-Type"] == IMAGE.media_type
                assert answer.headers["Content-Length"] == str(len(IMAGE.manifest))
                assert answer.headers["Docker-Content-Digest"] == IMAGE.digest
                assert answer.headers["ETag"] == f'"{IMAGE.digest}"'
                assert answer.headers["Docker-Distribution-Api-Version"] == "registry/2.0"


async def test_a_manifest_that_says_it_is_a_page_runs_nothing(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    document = {"schemaVersion": 2, "mediaType": "text/html", "x": "<script>steal()</script>"}
    page = content.Image(manifest=content.encode(document), media_type="text/html", blobs={})
    upstream.add("library/page", page)
    for _ in range(3):  # the last one is of the response cache
        answer = await proxy.get("/v2/library/page/manifests/latest")
        assert answer.headers["Content-Type"] == "text/html"
        assert answer.headers["Content-Security-Policy"] == "sandbox"
    plain = await proxy.get("/v2/library/app/manifests/latest")
    assert "Content-Security-Policy" not in plain.headers


async def test_a_blob_cold_and_warm(proxy: Proxy) -> None:
    for _ in range(2):
        head, got = await proxy.head(BLOB), await proxy.get(BLOB)
        assert (got.status, got.body) == (200, DATA)
        assert (head.status, head.body) == (200, b"")
        for answer in (got, head):
            assert answer.headers["Content-Type"] == "application/octet-stream"
            assert answer.headers["Content-Length"] == str(len(DATA))
            assert answer.headers["Docker-Content-Digest"] == LAYER
            assert answer.headers["ETag"] == f'"{LAYER}"'
            assert answer.headers["Accept-Ranges"] == "bytes"
        await proxy.settled()


@pytest.mark.parametrize(
    ("asked", "first", "stop"),
    [
        ("bytes=500-1499", 500, 1500),
        ("bytes=500-", 500, 2048),
        ("bytes=-500", 1548, 2048),
        ("bytes=2000-5000", 2000, 2048),
        ("bytes=0-", 0, 2048),
        ("bytes=0-0", 0, 1),
        ("bytes=-9999", 0, 2048),
    ],
)
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_c23_ranges_warm_and_cold(
    proxy: Proxy, asked: str, first: int, stop: int, *, warm: bool
) -> None:
    if warm:
        await proxy.get(BLOB)
        await proxy.settled()
    answer = await proxy.get(BLOB, Range=asked)
    assert (answer.status, answer.body) == (206, DATA[first:stop])
    assert answer.headers["Content-Length"] == str(stop - first)
    assert answer.headers["Content-Range"] == f"bytes {first}-{stop - 1}/2048"
    await proxy.settled()
    assert proxy.held() == {LAYER}


@pytest.mark.parametrize("asked", ["bytes=500-0", "bytes=5000-10000", "bytes=2048-", "bytes=-0"])
async def test_t24_a_range_outside_is_416(proxy: Proxy, asked: str) -> None:
    for _ in range(2):
        answer = await proxy.get(BLOB, Range=asked)
        assert (answer.status, code(answer.body)) == (416, "RANGE_INVALID")
        assert answer.headers["Content-Range"] == "bytes */2048"
        await proxy.settled()


@pytest.mark.parametrize(
    "asked", ["bytes=0-2000,1-2001", "bytes=0-1,x", "lines=1-2", "bytes=-", "bytes=a-b", "nonsense"]
)
async def test_a_range_that_is_not_understood_is_ignored(proxy: Proxy, asked: str) -> None:
    assert (await proxy.get(BLOB, Range=asked)).status == 200


async def test_if_range(proxy: Proxy) -> None:
    same = await proxy.get(BLOB, Range="bytes=0-9", If_Range=f'"{LAYER}"')
    other = await proxy.get(BLOB, Range="bytes=0-9", If_Range='"else"')
    assert (same.status, other.status) == (206, 200)


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS"])
async def test_t32_writes_are_refused_and_never_reach_upstream(
    proxy: Proxy, upstream: FakeUpstream, method: str
) -> None:
    for path in ("/v2/", "/v2/library/app/blobs/uploads/", MANIFEST):
        answer = await proxy.ask(method, path)
        assert (answer.status, code(answer.body)) == (405, "UNSUPPORTED")
        assert answer.headers["Allow"] == "GET, HEAD"
    assert not upstream.requests


@pytest.mark.parametrize(
    ("path", "status", "expected"),
    [
        ("/v2/library/app/manifests/none", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/library/app/manifests/{content.digest(b'none')}", 404, "MANIFEST_UNKNOWN"),
        (f"/v2/library/app/blobs/{content.digest(b'none')}", 404, "BLOB_UNKNOWN"),
        ("/v2/library/none/tags/list", 404, "NAME_UNKNOWN"),
        ("/v2/library/app/manifests/sha256:baddigeststring", 400, "DIGEST_INVALID"),
        ("/v2/UPPER/manifests/x", 400, "NAME_INVALID"),
        ("/v2/library/app/manifests/.x", 400, "TAG_INVALID"),
        ("/v2/example.com/app/manifests/x", 404, "NAME_UNKNOWN"),
        ("/v2/app/manifests/x?ns=example.com", 404, "NAME_UNKNOWN"),
        ("/v2/library/app/tags/list?n=x", 400, "PAGINATION_NUMBER_INVALID"),
        ("/v1/repositories/app/images", 404, "UNSUPPORTED"),
        ("/-/none", 404, "UNSUPPORTED"),
    ],
)
async def test_errors_are_oci_documents(
    proxy: Proxy, path: str, status: int, expected: str
) -> None:
    answer = await proxy.get(path)
    assert (answer.status, code(answer.body)) == (status, expected)
    assert answer.headers["Content-Type"] == "application/json"
    head = await proxy.head(path)
    assert (head.status, head.body) == (status, b"")


async def test_c01_the_namespace_is_answered(proxy: Proxy) -> None:
    for path in ("/v2/app/manifests/latest?ns=docker.io", f"{BLOB}?ns=index.docker.io"):
        answer = await proxy.get(path)
        assert answer.headers["OCI-Namespace"] == path.rpartition("=")[2]
    assert "OCI-Namespace" not in (await proxy.get(MANIFEST)).headers


async def test_c01_three_ways_to_many_upstreams(start: Start, upstream: FakeUpstream) -> None:
    async with FakeUpstream() as lab:
        lab.add("team/tool/deep/down", content.image(5))
        proxy = await start(upstreams={"lab": {"url": lab.url, "hostnames": ["lab.example"]}})
        plain = "/v2/team/tool/deep/down/manifests/latest"
        for answer in (
            await proxy.get(f"{plain}?ns=lab"),
            await proxy.get(f"{plain}?ns={lab.url.removeprefix('http://')}"),
            await proxy.get(plain, Host="lab.example:5000"),
            await proxy.get("/v2/lab/team/tool/deep/down/manifests/latest"),
        ):
            assert answer.body == content.image(5).manifest
        assert (await proxy.get(plain)).status == 404
        assert (await proxy.get("/v2/app/manifests/latest")).body == IMAGE.manifest
        assert len(lab.requests) == 1, "one upstream, one repository, however it was named"


async def test_t28_tags_are_listed_and_links_lead_back_here(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    whole = await proxy.get("/v2/app/tags/list")
    assert json.loads(whole.body) == {"name": "app", "tags": ["latest", "v1", "v2"]}
    upstream.behaviour.absolute_links = True
    first = await proxy.get("/v2/app/tags/list?n=2&ns=docker.io")
    assert json.loads(first.body)["tags"] == ["latest", "v1"]
    link = first.headers["Link"]
    assert link == '</v2/app/tags/list?n=2&last=v1&ns=docker.io>; rel="next"'
    second = await proxy.get(link[1 : link.index(">")])
    assert json.loads(second.body)["tags"] == ["v2"]
    assert "Link" not in second.headers


async def test_tags_known_here_stand_in_when_upstream_is_away(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    for tag in ("latest", "v2"):
        await proxy.get(f"/v2/app/manifests/{tag}")
    upstream.fail(503)
    answer = await proxy.get("/v2/app/tags/list")
    assert json.loads(answer.body)["tags"] == ["latest", "v2"]
    assert "Warning" in answer.headers
    page = await proxy.get("/v2/app/tags/list?n=1")
    assert json.loads(page.body)["tags"] == ["latest"]
    assert "last=latest" in page.headers["Link"]
    assert (await proxy.get("/v2/other/tags/list")).status == 502


async def test_upstream_headers_are_not_passed_on(proxy: Proxy, upstream: FakeUpstream) -> None:
    for name in ("Set-Cookie", "WWW-Authenticate", "Strict-Transport-Security", "RateLimit-Limit"):
        upstream.fault(header(name, "x=1"))
    for path in (MANIFEST, BLOB):
        answer = await proxy.get(path)
        assert answer.status == 200
        assert not {"set-cookie", "www-authenticate", "strict-transport-security",
                    "ratelimit-limit"} & {name.lower() for name in answer.headers}  # fmt: skip


async def test_one_line_a_request_in_the_log(proxy: Proxy) -> None:
    await proxy.get(MANIFEST)
    await proxy.get(MANIFEST)
    await proxy.get("/v2/app/manifests/none")
    await proxy.close()
    lines = [json.loads(line) for line in proxy.log.getvalue().splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert [line["outcome"] for line in requests] == ["miss", "hit", "error"]
    first, _, last = requests
    assert first["upstream"] == "docker.io"
    assert first["repository"] == "library/app"
    assert first["reference"] == "latest"
    assert first["bytes"] == len(IMAGE.manifest)
    assert first["status"] == 200
    assert 0 < first["seconds"] < 10
    assert (last["error"], last["status"]) == ("MANIFEST_UNKNOWN", 404)


async def test_a_bug_is_a_500_that_tells_nothing(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("proxy.web.registry.parse_path", broken)
    answer = await proxy.get(MANIFEST)
    assert (answer.status, code(answer.body)) == (500, "UNKNOWN")
    assert b"secret detail" not in answer.body
    assert "ZeroDivisionError" in proxy.log.getvalue()


async def test_keep_alive_serves_on_after_every_kind_of_answer(proxy: Proxy) -> None:
    host, port = proxy.app.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    absent = "/v2/library/app/manifests/none"
    requests: list[tuple[str, str, str, int, bytes | None]] = [
        ("GET", BLOB, "", 200, DATA),
        ("GET", MANIFEST, "", 200, IMAGE.manifest),
        ("HEAD", MANIFEST, "", 200, b""),
        ("GET", absent, "", 404, None),
        ("HEAD", absent, "", 404, b""),
        ("GET", BLOB, "Range: bytes=5-9\r\n", 206, DATA[5:10]),
        ("GET", BLOB, "Range: bytes=9999-\r\n", 416, None),
        ("GET", BLOB, f'If-None-Match: "{LAYER}"\r\n', 304, b""),
        ("POST", "/v2/library/app/blobs/uploads/", "Content-Length: 0\r\n", 405, None),
        ("GET", "/v2/", "", 200, b"{}"),
        ("GET", "/nowhere", "", 404, None),
        ("GET", BLOB, "", 200, DATA),
    ]
    for method, path, lines, status, body in requests * 2:
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode())
        async with asyncio.timeout(20):
            first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
            assert int(first.split()[1]) == status, (method, path, lines)
            fields = dict(line.lower().split(": ", 1) for line in headers if line)
            has_body = method != "HEAD" and status != 304
            got = await reader.readexactly(int(fields["content-length"]) if has_body else 0)
        assert fields.get("connection") != "close"
        if body is None:
            assert code(got)
        else:
            assert got == body, (method, path, lines)
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
async def test_c23_several_ranges_at_once(proxy: Proxy, *, warm: bool) -> None:
    if warm:
        await proxy.get(BLOB)
        await proxy.settled()
    answer = await proxy.get(BLOB, Range="bytes=0-9, 100-199 ,-48, 9999-")
    assert answer.status == 206
    assert answer.headers["Content-Length"] == str(len(answer.body))
    kind, _, boundary = answer.headers["Content-Type"].partition("; boundary=")
    assert kind == "multipart/byteranges"
    parts = answer.body.split(f"\r\n--{boundary}".encode())
    assert parts[0] == b""
    assert parts[-1] == b"--\r\n"
    spans = [(0, 10), (100, 200), (2000, 2048)]
    for part, (first, stop) in zip(parts[1:-1], spans, strict=True):
        head, _, body = part.partition(b"\r\n\r\n")
        assert f"Content-Range: bytes {first}-{stop - 1}/2048".encode() in head
        assert body == DATA[first:stop]


@pytest.mark.parametrize("path", [MANIFEST, f"/v2/library/app/manifests/{IMAGE.digest}", BLOB])
async def test_what_the_client_has_is_not_sent_again(
    proxy: Proxy, upstream: FakeUpstream, path: str
) -> None:
    digest = (await proxy.get(path)).headers["Docker-Content-Digest"]
    await proxy.settled()
    upstream.clear()
    for condition in (f'"{digest}"', digest, f'W/"{digest}"', f'"x", "{digest}"', "*"):
        for answer in (
            await proxy.get(path, If_None_Match=condition),
            await proxy.head(path, If_None_Match=condition),
        ):
            assert (answer.status, answer.body) == (304, b"")
            assert answer.headers["ETag"] == f'"{digest}"'
    assert (await proxy.get(path, If_None_Match='"else"')).status == 200
    assert not upstream.requests


async def test_if_none_match_of_a_cold_blob_downloads_nothing(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert (await proxy.get(BLOB, If_None_Match=f'"{LAYER}"')).status == 304
    assert upstream.bodies(LAYER) == 0
    none = content.digest(b"none")
    path = f"/v2/library/app/blobs/{none}"
    assert (await proxy.get(path, If_None_Match=f'"{none}"')).status == 404


async def test_t65_every_answer_says_what_the_cache_did(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(patience={"retries": 0, "failures": 2, "pause": "1h", "cool_down": 0})

    async def status(path: str, method: str = "GET", **headers: str) -> str:
        return (await proxy.ask(method, path, **headers)).headers["Cache-Status"]

    by_digest = f"/v2/library/app/manifests/{IMAGE.digest}"
    assert await status(MANIFEST, "HEAD") == "Millpond; fwd=uri-miss", "nothing is stored"
    assert await status(BLOB, "HEAD") == "Millpond; fwd=uri-miss"
    assert await status(BLOB, If_None_Match=f'"{LAYER}"') == "Millpond; fwd=uri-miss"
    assert await status(MANIFEST) == "Millpond; fwd=uri-miss; stored"
    clock.advance(100)
    assert await status(MANIFEST) == "Millpond; hit; ttl=200"
    assert await status(by_digest) == "Millpond; hit"
    assert await status(BLOB) == "Millpond; fwd=uri-miss; stored"
    await proxy.settled()
    assert await status(BLOB) == "Millpond; hit"
    confirmed = "fwd-status=200; ttl=300; detail=confirmed"
    assert await status(MANIFEST, Cache_Control="no-cache") == f"Millpond; fwd=request; {confirmed}"
    clock.advance(400)
    upstream.add("org/copy", IMAGE)
    before = working()
    assert await status(MANIFEST) == "Millpond; hit; ttl=-100; detail=stale"
    await at_rest(proxy, before)  # the confirmation in the background has ended
    clock.advance(1e6)
    assert await status(MANIFEST) == f"Millpond; fwd=stale; {confirmed}"
    copied = f"/v2/org/copy/manifests/{IMAGE.digest}"
    assert await status(copied) == "Millpond; fwd=uri-miss; fwd-status=200; detail=confirmed"
    none = "/v2/app/manifests/none"
    absent = "fwd-status=404; detail=MANIFEST_UNKNOWN"
    assert await status(none) == f"Millpond; fwd=uri-miss; {absent}"
    assert await status(none) == "Millpond; hit; detail=MANIFEST_UNKNOWN", "upstream is not asked"
    assert await status("/v2/app/tags/list") == "Millpond; fwd=bypass"
    assert await status("/v2/UPPER/manifests/x") == "Millpond; detail=NAME_INVALID"
    held = await status("/v2/app/manifests/x", Cache_Control="only-if-cached")
    assert held == "Millpond; detail=UNAVAILABLE"
    upstream.add("library/app", content.image(9), tags=["latest"])
    clock.advance(1e6)
    assert await status(MANIFEST) == "Millpond; fwd=stale; stored"
    clock.advance(1e6)
    upstream.fail(429)
    assert "fwd=stale; fwd-status=429; detail=TOOMANYREQUESTS" in await status(MANIFEST)
    upstream.heal()
    await upstream.stop()
    assert await status(MANIFEST) == "Millpond; fwd=stale; detail=UNAVAILABLE"
    assert await status(none.replace("none", "a")) == "Millpond; fwd=uri-miss; detail=UNAVAILABLE"
    left_alone = await status(none.replace("none", "b"))
    assert left_alone == "Millpond; detail=UNAVAILABLE", "the circuit is open"
    assert await status(MANIFEST) == "Millpond; hit; detail=UNAVAILABLE"


async def test_t65_joined_answers_say_so(proxy: Proxy, upstream: FakeUpstream) -> None:
    large = upstream.add_blob("library/app", content.blob(500_000))
    release = upstream.stall(100_000, kind="blob")
    path = f"/v2/library/app/blobs/{large}"
    async with proxy.client.get(path) as first, proxy.client.get(path) as second:
        release.set()
        statuses = [answer.headers["Cache-Status"] for answer in (first, second)]
    assert statuses == ["Millpond; fwd=uri-miss; stored", "Millpond; fwd=uri-miss; collapsed"]


async def test_t65_answers_that_are_not_kept_say_so(start: Start, upstream: FakeUpstream) -> None:
    proxy = await start(storage={"max_size": 4096})
    large = upstream.add_blob("library/app", content.blob(100_000))
    answer = await proxy.get(f"/v2/library/app/blobs/{large}")
    assert answer.headers["Cache-Status"] == "Millpond; fwd=uri-miss; stored=?0"


async def test_the_catalog_is_off_unless_switched_on(start: Start) -> None:
    proxy = await start()
    answer = await proxy.get("/v2/_catalog")
    assert (answer.status, code(answer.body)) == (403, "DENIED")
    assert b"catalog: true" in answer.body
    await proxy.close()
    proxy = await start(catalog=True)
    assert json.loads((await proxy.get("/v2/_catalog")).body) == {"repositories": []}
    await proxy.get(MANIFEST)
    first = await proxy.get("/v2/_catalog?n=1")
    assert json.loads(first.body) == {"repositories": ["docker.io/library/app"]}
    assert "Link" not in first.headers
    assert first.headers["Cache-Status"] == "Millpond; hit"


async def test_the_catalog_says_that_everything_is_offline(start: Start) -> None:
    proxy = await start(catalog=True, offline=True)
    answer = await proxy.get("/v2/_catalog")
    assert answer.headers["Cache-Status"] == "Millpond; hit; detail=offline"


async def test_t28_an_upstream_that_neither_sorts_nor_pages(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    unsorted = json.dumps({"name": "library/app", "tags": ["b", "c", "a", "d"]}).encode()
    upstream.fault(spoilt(unsorted, "application/json"), kind="tags")
    seen, path = [], "/v2/app/tags/list?n=3"
    while path:
        answer = await proxy.get(path)
        seen.append(json.loads(answer.body)["tags"])
        link = answer.headers.get("Link", "<>")
        path = link[1 : link.index(">")]
    assert seen == [["a", "b", "c"], ["d"]]


@pytest.mark.parametrize("page", [b"<html>", b"{}", b"[]", b'{"tags": 5}'])
async def test_a_tags_list_that_cannot_be_read_is_not_empty(
    proxy: Proxy, upstream: FakeUpstream, page: bytes
) -> None:
    upstream.fault(spoilt(page, "application/json"), kind="tags")
    assert (await proxy.get("/v2/app/tags/list")).status == 502


async def test_a_tags_list_may_say_null_for_none(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.fault(spoilt(b'{"name": "x", "tags": null}', "application/json"), kind="tags")
    assert json.loads((await proxy.get("/v2/app/tags/list")).body)["tags"] == []
