"""Every kind of registry in `quirks`, asked everything that clients ask."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start
from tests.upstream.quirks import QUIRKS, USER, Quirk

IMAGE = content.multi_platform(1)
NEWER = content.multi_platform(2)
SECRET = content.image(3)
ELSE = content.image(4)


def only(*schemes: str) -> pytest.MarkDecorator:
    """Run a test for the registries of these schemes, not for all."""
    chosen = [quirk for quirk in QUIRKS if quirk.auth.get("scheme") in schemes]
    return pytest.mark.parametrize("quirk", chosen, ids=lambda quirk: quirk.name, indirect=True)


@pytest.fixture(params=QUIRKS, ids=lambda quirk: quirk.name)
def quirk(request: pytest.FixtureRequest) -> Quirk:
    found = request.param
    assert isinstance(found, Quirk)
    return found


@pytest.fixture
async def upstream(quirk: Quirk) -> AsyncIterator[FakeUpstream]:
    async with quirk.make() as fake:
        quirk.apply(fake)
        fake.add("library/app", IMAGE, tags=["a", "b", "c"])
        fake.add("library/else", ELSE)
        if fake.auth.scheme != "none":
            fake.add("library/secret", SECRET)
            fake.auth.private = {"library/secret": {"somebody"}}
        yield fake


@pytest.fixture
async def proxy(start: Start, quirk: Quirk) -> Proxy:
    return await start(hub=dict(quirk.settings))


async def pull(proxy: Proxy, ref: str, index: content.Index = IMAGE) -> None:
    answer = await proxy.get(f"/v2/app/manifests/{ref}")
    assert (answer.status, answer.body) == (200, index.manifest), answer.body
    assert answer.headers["Content-Type"] == index.media_type
    assert answer.headers["Docker-Content-Digest"] == index.digest
    for child in index.children:
        answer = await proxy.get(f"/v2/app/manifests/{child.digest}")
        assert (answer.status, answer.body) == (200, child.manifest)
    for digest, data in index.blobs.items():
        answer = await proxy.get(f"/v2/app/blobs/{digest}")
        assert (answer.status, answer.body) == (200, data)
    await proxy.settled()


async def test_pulled_whole_and_then_from_here(proxy: Proxy, upstream: FakeUpstream) -> None:
    await pull(proxy, "a")
    upstream.clear()
    await pull(proxy, "a")
    await pull(proxy, IMAGE.digest)
    assert not upstream.requests
    assert not upstream.token_requests
    assert not upstream.cdn_requests


async def test_heads_of_what_is_not_held(proxy: Proxy) -> None:
    for ref in ("a", IMAGE.children[0].digest):
        answer = await proxy.head(f"/v2/app/manifests/{ref}")
        expected = IMAGE if ref == "a" else IMAGE.children[0]
        assert (answer.status, answer.body) == (200, b"")
        assert answer.headers["Docker-Content-Digest"] == expected.digest
        assert answer.headers["Content-Type"] == expected.media_type
        assert answer.headers["Content-Length"] == str(len(expected.manifest))
    digest, data = next(iter(IMAGE.blobs.items()))
    answer = await proxy.head(f"/v2/app/blobs/{digest}")
    assert (answer.status, answer.headers["Docker-Content-Digest"]) == (200, digest)
    assert answer.headers.get("Content-Length") in {str(len(data)), None}


async def test_all_tags_are_listed(proxy: Proxy) -> None:
    for path in ("/v2/app/tags/list", "/v2/app/tags/list?n=2"):
        seen: list[str] = []
        further = path
        while further:
            answer = await proxy.get(further)
            assert answer.status == 200
            seen += json.loads(answer.body)["tags"]
            link = answer.headers.get("Link", "<>")
            further = link[1 : link.index(">")]
        assert seen == ["a", "b", "c"]


async def test_a_moved_tag_is_noticed(proxy: Proxy, upstream: FakeUpstream, clock: Clock) -> None:
    await pull(proxy, "a")
    upstream.clear()
    clock.advance(1e6)
    assert (await proxy.get("/v2/app/manifests/a")).body == IMAGE.manifest
    assert upstream.count(kind="manifest") <= 2, "asked by HEAD, or by GET where HEAD does not tell"
    upstream.retag("library/app", "a", NEWER)
    clock.advance(1e6)
    await pull(proxy, "a", NEWER)


async def test_what_does_not_exist(proxy: Proxy, quirk: Quirk) -> None:
    none = content.digest(b"none")
    for path in (
        "/v2/library/none/manifests/latest",
        f"/v2/library/none/blobs/{none}",
        "/v2/library/none/tags/list",
    ):
        for _ in range(2):
            assert (await proxy.get(path)).status == quirk.unknown, path
        assert (await proxy.head(path)).status == quirk.unknown, path
    for path in ("/v2/app/manifests/none", f"/v2/app/manifests/{none}", f"/v2/app/blobs/{none}"):
        for answer in (await proxy.get(path), await proxy.head(path)):
            assert answer.status == 404, path


@only("basic", "bearer")
async def test_what_we_may_not_read(proxy: Proxy, upstream: FakeUpstream, quirk: Quirk) -> None:
    for path in (
        "/v2/library/secret/manifests/latest",
        f"/v2/library/secret/manifests/{SECRET.digest}",
        f"/v2/library/secret/blobs/{SECRET.layers[0]}",
        "/v2/library/secret/tags/list",
    ):
        answer = await proxy.get(path)
        assert (answer.status, b'"DENIED"' in answer.body) == (quirk.private, True), path
        assert "WWW-Authenticate" not in answer.headers
    await pull(proxy, "a")
    upstream.auth.private["library/secret"].add(quirk.reader["username"])
    if quirk.settings.get("username"):
        answer = await proxy.get("/v2/library/secret/manifests/latest")
        assert answer.body == SECRET.manifest, "a refusal is not remembered"


@only("basic", "bearer")
async def test_our_credentials_open_what_is_private(
    start: Start, upstream: FakeUpstream, quirk: Quirk
) -> None:
    upstream.auth.private = {"library/secret": {quirk.reader["username"]}}
    proxy = await start(hub={**quirk.settings, **quirk.reader})
    for path, expected in (
        ("manifests/latest", SECRET.manifest),
        (f"blobs/{SECRET.layers[0]}", SECRET.blobs[SECRET.layers[0]]),
    ):
        answer = await proxy.get(f"/v2/library/secret/{path}")
        assert (answer.status, answer.body) == (200, expected)
    assert _sent_passwords(upstream) == (upstream.auth.scheme == "basic")
    assert all("Authorization" not in request.headers for request in upstream.cdn_requests)
    assert quirk.reader["password"] not in proxy.log.getvalue()


def _sent_passwords(upstream: FakeUpstream) -> bool:
    """Was the registry itself, and not only its token server, told a password?"""
    sent = [request.headers.get("Authorization", "") for request in upstream.requests]
    return any(value.startswith("Basic ") for value in sent)


@only("basic", "bearer")
async def test_our_credentials_are_wrong(
    start: Start, upstream: FakeUpstream, quirk: Quirk
) -> None:
    wrong = {"username": quirk.reader["username"], "password": "looking-glass"}
    proxy = await start(hub={**quirk.settings, **wrong})
    for _ in range(2):
        answer = await proxy.get("/v2/app/manifests/a")
        assert answer.status == quirk.bad_credentials
        assert "WWW-Authenticate" not in answer.headers
    secret = base64.b64encode(f"{wrong['username']}:looking-glass".encode()).decode()
    said = proxy.log.getvalue() + answer.body.decode()
    assert "looking-glass" not in said
    assert secret not in said
    upstream.auth.users = {wrong["username"]: wrong["password"]}
    assert (await proxy.get("/v2/app/manifests/a")).status == 200, "once mended, it works at once"


@only("bearer")
async def test_c14_a_token_that_ended_early_is_renewed(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    upstream.revoke_tokens()
    upstream.clear()
    digest, data = next(iter(IMAGE.blobs.items()))
    assert (await proxy.get("/v2/app/manifests/b")).status == 200
    assert (await proxy.get(f"/v2/app/blobs/{digest}")).body == data
    assert len(upstream.token_requests) == 1


async def test_t33_content_is_had_through_its_own_name_only(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, "a")
    for path in (f"manifests/{IMAGE.digest}", *(f"blobs/{digest}" for digest in IMAGE.blobs)):
        for answer in (
            await proxy.get(f"/v2/else/{path}"),
            await proxy.head(f"/v2/else/{path}"),
        ):
            assert answer.status == 404, path


async def test_the_rate_limit_is_known_where_there_is_one(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await pull(proxy, "a")
    pulls = 1 + len(IMAGE.children)
    assert proxy.numbers["pulls_spent"] >= pulls
    limit: dict[str, Any] | None = proxy.numbers["rate_limit"]
    if upstream.behaviour.rate_limit is None:
        assert limit is None
    else:
        assert limit is not None
        assert (limit["limit"], limit["remaining"]) == (100, 100 - pulls)
        assert limit["source"] == "192.0.2.1"


async def test_t20_a_name_of_one_word_is_a_library_of_docker_hub_only(
    proxy: Proxy, start: Start, upstream: FakeUpstream, quirk: Quirk
) -> None:
    await proxy.close()
    upstream.add("plain", ELSE)
    names = await start(upstreams={"lab": {"url": upstream.url, **quirk.settings}})
    assert (await names.get("/v2/lab/plain/manifests/latest")).body == ELSE.manifest
    assert (await names.get("/v2/lab/library/else/manifests/latest")).body == ELSE.manifest


class TestGitLabDomain:
    """A token server on another host of the registry's domain is trusted without being listed."""

    @pytest.fixture
    def quirk(self) -> Quirk:
        return Quirk(
            name="gitlab-domain",
            auth={
                "scheme": "bearer",
                "dialect": "gitlab",
                "realm": "http://gitlab.example/token",
                "users": {USER["username"]: USER["password"]},
            },
        )

    @pytest.fixture(autouse=True)
    def names(self, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let every name lead to the fake, by way of a forward proxy, which it also is."""
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, f"http://{upstream.host}")
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)

    @pytest.mark.parametrize(
        ("host", "status"),
        [("registry.gitlab.example", 200), ("gitlab.example", 200), ("gitlab.else.example", 502)],
    )
    async def test_t30_credentials_stay_in_the_domain(
        self, start: Start, upstream: FakeUpstream, host: str, status: int
    ) -> None:
        upstream.auth.private["library/secret"].add(USER["username"])
        proxy = await start(hub={"url": f"http://{host}", **USER})
        answer = await proxy.get("/v2/library/secret/manifests/latest")
        assert answer.status == status
        assert [request.headers["Host"] for request in upstream.token_requests] == (
            ["gitlab.example"] if status == 200 else []
        )
