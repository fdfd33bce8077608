"""Clients that may read large blobs from the bucket itself, and those that may not."""

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from aiohttp import ClientSession

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.seaweed import TestBucket
from tests.running import Proxy, Start, until

APP = content.image(1, layers=(200_000, 5000))
LARGE, SMALL = APP.layers
DOCKER = "docker/27.3.1 go/go1.22.7 git-commit/41ca978 kernel/6.1 os/linux arch/amd64"

Redirecting = Callable[..., Awaitable[Proxy]]


@pytest.fixture
def redirecting(start: Start, upstream: FakeUpstream, bucket: TestBucket) -> Redirecting:
    """Start a proxy that redirects, and fill the bucket."""
    upstream.add("library/app", APP)

    async def begin(endpoint: str | None = None, **settings: Any) -> Proxy:
        port = bucket.server.endpoint.rpartition(":")[2]
        public = endpoint or f"http://localhost:{port}"
        redirect = {"public_endpoint": public, "min_size": 100_000}
        storage = {"bucket": bucket.settings(redirect=redirect)}
        proxy = await start(storage=storage, **settings)
        assert (await proxy.get("/v2/app/manifests/latest")).status == 200
        for digest in APP.layers:
            assert (await proxy.get(f"/v2/app/blobs/{digest}")).status == 200
        await proxy.settled()
        await until(lambda: {*APP.layers} <= {*bucket.objects()})
        tier = proxy.app.bucket
        assert tier is not None
        await until(lambda: tier.uploads.pending == 0)
        return proxy

    return begin


async def answered(
    proxy: Proxy, digest: str = LARGE, method: str = "GET", repo: str = "app", **headers: str
) -> tuple[int, str | None]:
    """Return the status and the ``Location`` of an answer."""
    sent = {"User-Agent": DOCKER} | {key.replace("_", "-"): text for key, text in headers.items()}
    async with proxy.client.request(
        method, f"/v2/{repo}/blobs/{digest}", headers=sent, allow_redirects=False
    ) as response:
        return response.status, response.headers.get("Location")


async def test_a_large_blob_comes_from_the_bucket(redirecting: Redirecting) -> None:
    proxy = await redirecting()
    status, url = await answered(proxy)
    assert status == 307
    assert url is not None
    assert "X-Amz-Expires=1200" in url
    async with ClientSession() as session, session.get(url) as response:
        assert await response.read() == APP.blobs[LARGE]


async def test_small_blobs_heads_and_ranges_are_answered_here(redirecting: Redirecting) -> None:
    proxy = await redirecting()
    assert await answered(proxy, SMALL) == (200, None)
    assert await answered(proxy, method="HEAD") == (200, None)
    assert await answered(proxy, Range="bytes=10-") == (206, None)
    assert (await answered(proxy))[0] == 307


@pytest.mark.parametrize(
    ("agent", "status"),
    [
        ("containerd/v2.0.0", 307),
        ("containers/5.33.1 (github.com/containers/image)", 307),
        ("go-containerregistry/v0.20.2", 307),
        ("buildkit/v0.17", 307),
        ("renovate/39", 200),
        ("Open Policy Agent/1.0", 200),
        ("Go-http-client/1.1", 200),
        ("python-requests/2.32 docker/27", 200),
        ("", 200),
    ],
)
async def test_only_clients_that_drop_their_login_are_redirected(
    redirecting: Redirecting, agent: str, status: int
) -> None:
    proxy = await redirecting()
    assert (await answered(proxy, User_Agent=agent))[0] == status


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("cache.example", 200),
        ("s3.cache.example:5000", 200),
        ("example", 200),
        ("notcache.example", 307),
        ("cache.other", 307),
    ],
)
async def test_a_login_would_go_to_a_subdomain_so_none_is_redirected_there(
    redirecting: Redirecting, host: str, status: int
) -> None:
    proxy = await redirecting("https://s3.cache.example")
    assert (await answered(proxy, Host=host))[0] == status


async def test_content_of_another_repository_is_not_given_away(
    redirecting: Redirecting, upstream: FakeUpstream
) -> None:
    proxy = await redirecting()
    assert (await answered(proxy, repo="other/thing"))[0] == 404


async def test_denied_clients_learn_no_url(redirecting: Redirecting) -> None:
    rules = {"rules": [{"deny": "pull", "images": ["docker.io/secret/*"]}, {"allow": "pull"}]}
    proxy = await redirecting(access=rules)
    assert (await answered(proxy))[0] == 307
    status, url = await answered(proxy, repo="secret/app")
    assert status in (401, 403, 404)
    assert url is None


async def test_limited_clients_get_blobs_here(redirecting: Redirecting) -> None:
    proxy = await redirecting(access={"limits": {"bytes_per_second": "100MB/s"}})
    assert (await answered(proxy))[0] == 200


async def test_an_object_that_is_not_known_to_be_there_is_sent_from_here(
    redirecting: Redirecting,
) -> None:
    proxy = await redirecting()
    assert proxy.app.bucket is not None
    proxy.app.bucket.client._known.clear()
    assert await answered(proxy) == (200, None)


async def test_a_bucket_that_is_skipped_gets_no_clients(redirecting: Redirecting) -> None:
    proxy = await redirecting()
    assert proxy.app.bucket is not None
    proxy.app.bucket.client.fail("a test says so")
    assert await answered(proxy) == (200, None)


async def test_without_a_public_endpoint_nobody_is_redirected(
    start: Start, upstream: FakeUpstream, bucket: TestBucket
) -> None:
    upstream.add("library/app", APP)
    proxy = await start(storage={"bucket": bucket.settings()})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    assert (await proxy.get(f"/v2/app/blobs/{LARGE}")).status == 200
    await until(lambda: LARGE in bucket.objects())
    assert await answered(proxy) == (200, None)
