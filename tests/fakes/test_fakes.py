import json
import ssl
from pathlib import Path

import aiohttp
import pytest

from tests.fakes import content, faults
from tests.fakes.clock import Clock
from tests.fakes.pulling import BLOB, DIGEST, NAME, OTHER, blob, fetch, manifest
from tests.fakes.registry import RateLimit
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream

# Content


def test_content_is_deterministic_and_consistent() -> None:
    assert content.image(1) == content.image(1)
    assert content.image(1).digest != content.image(2).digest
    made = content.image(3, (10, 20), algorithm="sha512")
    assert made.digest.startswith("sha512:")
    assert [len(made.blobs[layer]) for layer in made.layers] == [10, 20]
    assert json.loads(made.blobs[made.config])["os"] == "linux"


def test_content_shapes() -> None:
    nested = content.nested_index()
    assert len(nested.manifests) == 5
    subject = content.image(docker=True)
    sbom = json.loads(content.artifact(subject).manifest)
    assert sbom["subject"]["digest"] == subject.digest
    foreign = content.foreign_image(["https://example.test/layer"])
    assert foreign.layers[0] not in foreign.blobs
    assert "mediaType" not in json.loads(content.untyped().manifest)
    assert len(content.oversized(5000).manifest) > 5000
    assert json.loads(content.schema1().manifest)["schemaVersion"] == 1
    assert content.unknown().media_type.endswith("v3+json")


def test_clock_only_moves_forward(clock: Clock) -> None:
    before = clock()
    clock.advance(2.5)
    assert clock() == clock.now == before + 2.5
    with pytest.raises(ValueError, match="forward"):
        clock.advance(-1)


# An honest registry


@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_manifest_by_tag_and_digest(
    upstream: FakeUpstream, session: aiohttp.ClientSession, method: str
) -> None:
    index = content.multi_platform()
    for reference in ("3.20", index.digest):
        response, body = await fetch(session, manifest(reference), method)
        assert response.status == 200
        assert response.headers["Docker-Content-Digest"] == index.digest
        assert response.headers["Content-Type"] == index.media_type
        assert response.headers["Content-Length"] == str(len(index.manifest))
        assert body == (index.manifest if method == "GET" else b"")
    assert upstream.count(method, "manifest", "3.20") == 1
    assert upstream.count(kind="manifest") == 2


async def test_conditional_get(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    response, _ = await fetch(session, manifest())
    response, body = await fetch(session, manifest(), If_None_Match=response.headers["ETag"])
    assert (response.status, body) == (304, b"")


@pytest.mark.parametrize(
    ("asked", "status", "said", "part"),
    [
        ("bytes=0-9", 206, "bytes 0-9/200000", BLOB[:10]),
        ("bytes=199990-", 206, "bytes 199990-199999/200000", BLOB[-10:]),
        ("bytes=-5", 206, "bytes 199995-199999/200000", BLOB[-5:]),
        ("bytes=199999-300000", 206, "bytes 199999-199999/200000", BLOB[-1:]),
        ("bytes=200000-", 416, "bytes */200000", None),
        ("bytes=5-2", 416, "bytes */200000", None),
        ("items=1-2", 200, None, BLOB),
    ],
)
async def test_blob_ranges(
    session: aiohttp.ClientSession, asked: str, status: int, said: str | None, part: bytes | None
) -> None:
    response, body = await fetch(session, blob(), Range=asked)
    assert response.status == status
    assert response.headers.get("Content-Range") == said
    assert part is None or body == part


async def test_if_range(session: aiohttp.ClientSession) -> None:
    right, _ = await fetch(session, blob(), Range="bytes=1-", If_Range=f'"{DIGEST}"')
    wrong, _ = await fetch(session, blob(), Range="bytes=1-", If_Range='"other"')
    assert (right.status, wrong.status) == (206, 200)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (manifest("absent"), "MANIFEST_UNKNOWN"),
        (blob(OTHER), "BLOB_UNKNOWN"),
        ("/v2/absent/tags/list", "NAME_UNKNOWN"),
    ],
)
async def test_unknown(session: aiohttp.ClientSession, path: str, code: str) -> None:
    response, body = await fetch(session, path)
    assert (response.status, json.loads(body)["errors"][0]["code"]) == (404, code)


async def test_retag_and_remove(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    newer = content.image(7)
    upstream.retag(NAME, "latest", newer)
    assert (await fetch(session, manifest()))[1] == newer.manifest
    upstream.remove_tag(NAME, "latest")
    assert (await fetch(session, manifest()))[0].status == 404
    assert (await fetch(session, manifest(newer.digest)))[0].status == 200
    upstream.remove(NAME, newer.digest)
    assert (await fetch(session, manifest(newer.digest)))[0].status == 404
    upstream.remove(NAME)
    assert (await fetch(session, f"/v2/{NAME}/tags/list"))[0].status == 404


async def test_tags_pages(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    path = f"/v2/{NAME}/tags/list"
    response, body = await fetch(session, f"{path}?n=1")
    assert json.loads(body) == {"name": NAME, "tags": ["3.20"]}
    assert response.headers["Link"] == f'<{path}?n=1&last=3.20>; rel="next"'
    response, body = await fetch(session, f"{path}?n=1&last=3.20")
    assert (json.loads(body)["tags"], "Link" in response.headers) == (["latest"], False)
    assert (await fetch(session, f"{path}?n=x"))[0].status == 400
    response, body = await fetch(session, f"{path}?n=0")
    assert (json.loads(body)["tags"], "Link" in response.headers) == ([], False)
    upstream.behaviour.absolute_links = True
    upstream.behaviour.page_size = 1
    response, _ = await fetch(session, path)
    assert response.headers["Link"].startswith(f"<{upstream.url}{path}?n=1")


async def test_referrers(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    subject = content.image(8)
    sbom = upstream.add(NAME, content.artifact(subject, annotations={"a": "b"}), tags=())
    upstream.add(NAME, content.artifact(subject, "application/signature"), tags=())
    path = f"/v2/{NAME}/referrers/{subject.digest}"
    _, body = await fetch(session, path)
    assert len(json.loads(body)["manifests"]) == 2
    kind = "application/vnd.example.sbom.v1"
    response, body = await fetch(session, f"{path}?artifactType={kind}")
    expected = sbom.descriptor | {"artifactType": kind, "annotations": {"a": "b"}}
    assert json.loads(body)["manifests"] == [expected]
    assert response.headers["OCI-Filters-Applied"] == "artifactType"
    assert (await fetch(session, f"/v2/{NAME}/referrers/sha256:bad"))[0].status == 400
    upstream.behaviour.referrers = False
    assert (await fetch(session, path))[0].status == 404


async def test_writes_are_refused(session: aiohttp.ClientSession) -> None:
    assert (await fetch(session, manifest(), "PUT"))[0].status == 405


async def test_strict_accept(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.behaviour.strict_accept = True
    response, body = await fetch(session, manifest(), Accept=content.OCI_MANIFEST)
    assert response.status == 404
    assert b"accept header does not support OCI indexes" in body
    response, _ = await fetch(session, manifest(), Accept=f"a/b, {content.OCI_INDEX};q=0.5")
    assert response.status == 200


async def test_rate_limit(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=1, retry_after=30)
    response, _ = await fetch(session, manifest())
    assert response.headers["ratelimit-remaining"] == "0;w=21600"
    assert (await fetch(session, manifest(), "HEAD"))[0].status == 200
    response, body = await fetch(session, manifest())
    assert (response.status, response.headers["Retry-After"]) == (429, "30")
    assert b"TOOMANYREQUESTS" in body
    assert (await fetch(session, blob()))[0].status == 200


# Redirects


async def test_redirect_to_the_cdn(
    upstream: FakeUpstream, session: aiohttp.ClientSession, clock: Clock
) -> None:
    upstream.behaviour.redirects = {"blob", "manifest"}
    for path, expected in ((blob(), BLOB), (manifest(), content.multi_platform().manifest)):
        response, _ = await fetch(session, path)
        location = response.headers["Location"]
        assert response.status == 307
        assert location.startswith(upstream.cdn_url)
        assert (await fetch(session, location))[1] == expected
    part, body = await fetch(session, location, Range="bytes=1-2")
    assert (part.status, len(body)) == (206, 2)
    assert (await fetch(session, location, "HEAD"))[0].status == 403  # signed for GET
    assert (await fetch(session, location, Authorization="Bearer x"))[0].status == 400
    assert upstream.cdn_requests[-1].headers["Authorization"] == "Bearer x"
    assert upstream.bodies(DIGEST) == 1
    clock.advance(upstream.behaviour.signature_ttl)
    assert (await fetch(session, location))[0].status == 403


async def test_redirects_only_what_exists(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.behaviour.redirects = {"blob", "manifest"}
    upstream.behaviour.rate_limit = RateLimit(remaining=1)
    assert (await fetch(session, blob(OTHER)))[0].status == 404
    response, body = await fetch(session, manifest())
    assert (response.status, body) == (307, b"")
    assert response.headers["ratelimit-remaining"] == "0;w=21600"
    assert (await fetch(session, manifest()))[0].status == 429


async def test_faults_of_the_cdn(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.behaviour.redirects = {"blob"}
    upstream.fault(faults.truncate(10), kind="data", reference=DIGEST, times=1)
    upstream.fail(503, repository="another")
    with pytest.raises(aiohttp.ClientPayloadError):
        await (await session.get(blob())).read()
    async with session.get(blob()) as response:
        assert await response.read() == BLOB
    assert [record.sent for record in upstream.cdn_requests] == [10, len(BLOB)]


async def test_relative_location(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.behaviour.redirects = {"blob"}
    upstream.behaviour.relative_location = True
    async with session.get(blob()) as response:
        assert response.history[0].headers["Location"].startswith("/data/")
        assert await response.read() == BLOB
    assert [record.kind for record in upstream.requests] == ["blob", "data"]


async def test_redirect_loop(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.redirect(), kind="blob")
    with pytest.raises(aiohttp.TooManyRedirects):
        await session.get(blob(), max_redirects=3)


async def test_hosts_may_differ() -> None:
    async with FakeUpstream(cdn_host="127.0.0.2") as upstream:
        assert upstream.cdn_url.startswith("http://127.0.0.2:")
        assert upstream.host == upstream.url.removeprefix("http://")


async def test_tls(tmp_path: Path) -> None:
    made = certificate(tmp_path)
    trust = ssl.create_default_context(cafile=str(made.authority))
    async with (
        FakeUpstream(ssl_context=made.server) as upstream,
        aiohttp.ClientSession() as session,
    ):
        async with session.get(f"{upstream.url}/v2/", ssl=trust) as response:
            assert response.status == 200
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await session.get(f"{upstream.url}/v2/")
