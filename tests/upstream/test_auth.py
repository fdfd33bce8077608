"""The token dance through a real socket."""

import asyncio
import json
from typing import Any

import pytest
from yarl import URL

from proxy.core.errors import UpstreamUnavailable
from proxy.runtime.ttl_cache import TTLCache
from proxy.upstream.auth import (
    DEFAULT_LIFE,
    LONGEST_LIFE,
    MAX_HOST,
    MAX_REALM,
    MAX_SCOPE,
    MAX_TOKEN,
    _read_token,
    read_realm,
    shares_domain,
)
from tests.fakes import content
from tests.fakes.faults import body, header, status
from tests.fakes.upstream import FakeUpstream
from tests.running import Start

IMAGE = content.image(1)
PULL = "repository:library/app:pull"


async def test_a_token_is_asked_for_once_however_many_wait(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.add("library/app", IMAGE)
    gate = upstream.hold(kind="token")
    proxy = await start()
    paths = [f"/v2/app/blobs/{digest}" for digest in IMAGE.blobs]
    asked = [asyncio.create_task(proxy.get(path)) for path in paths]
    await upstream.until(lambda: len(upstream.token_requests) == 1)
    await proxy.caught_up()
    gate.set()
    assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * len(paths)
    [token] = upstream.token_requests
    assert token.query.getall("scope") == [PULL]
    assert "Authorization" not in token.headers


async def test_a_token_is_used_until_90_percent_of_its_life(
    start: Start, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[TTLCache[Any], str, float]] = []
    keep = TTLCache.set

    async def watched(cache: TTLCache[Any], key: str, value: Any, ttl: float) -> None:
        if str(value).startswith("token-"):
            kept.append((cache, key, ttl))
        await keep(cache, key, value, ttl)

    monkeypatch.setattr(TTLCache, "set", watched)
    upstream.auth.scheme = "bearer"
    upstream.auth.expires_in = 300
    upstream.add("library/app", IMAGE, tags=["a", "b", "c"])
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    assert (await proxy.get("/v2/app/manifests/b")).status == 200
    assert len(upstream.token_requests) == 1
    [(cache, key, life)] = kept
    assert life == 0.9 * 300
    await cache.delete(key)  # as the end of its life does
    assert (await proxy.get("/v2/app/manifests/c")).status == 200
    assert len(upstream.token_requests) == 2
    assert upstream.count("GET", "manifest") == 4, "one challenge, three manifests"


async def test_c14_a_refused_token_is_renewed_once_from_a_fresh_challenge(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.dialect = "nvcr"
    upstream.add("library/app", IMAGE, tags=["a", "b"])
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    upstream.revoke_tokens()
    assert (await proxy.get("/v2/app/manifests/b")).status == 200
    assert len(upstream.token_requests) == 2


@pytest.mark.parametrize("code", [401, 403])
async def test_a_token_of_too_little_scope_is_not_renewed(
    start: Start, upstream: FakeUpstream, code: int
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.add("library/app", IMAGE, tags=["a", "b"])
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    upstream.clear()
    challenge = f'Bearer realm="{upstream.token_url}/token",error="insufficient_scope"'
    upstream.fault(status(code, headers={"WWW-Authenticate": challenge}))
    assert (await proxy.get("/v2/app/manifests/b")).status == 403
    assert upstream.count("GET") == 1
    assert not upstream.token_requests


async def test_credentials_go_to_the_token_server_and_private_images_come(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": "secret"}
    upstream.auth.private = {"library/app": {"alice"}}
    upstream.add("library/app", IMAGE)
    proxy = await start(hub={"username": "alice", "password": "secret"})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    assert upstream.token_requests[-1].headers["Authorization"].startswith("Basic ")
    assert "secret" not in proxy.log.getvalue()


async def test_a_private_image_without_credentials_is_denied_without_a_challenge(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.dialect = "hub"
    upstream.auth.private = {"library/app": {"alice"}}
    upstream.add("library/app", IMAGE)
    proxy = await start()
    for _ in range(2):
        answer = await proxy.get("/v2/app/manifests/latest")
        assert answer.status == 403
        assert b'"DENIED"' in answer.body
        assert "WWW-Authenticate" not in answer.headers


async def test_rejected_credentials_are_the_operators_to_mend(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": "secret"}
    upstream.add("library/app", IMAGE)
    proxy = await start(hub={"username": "alice", "password": "stale-pw"})
    answer = await proxy.get("/v2/app/manifests/latest")
    assert answer.status == 502
    assert b"rejected" in answer.body
    assert "credentials rejected" in proxy.log.getvalue()
    assert "stale-pw" not in proxy.log.getvalue() + answer.body.decode()


async def test_basic_without_credentials_is_denied(start: Start, upstream: FakeUpstream) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.add("library/app", IMAGE)
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/latest")).status == 403


async def test_the_challenge_may_stand_on_the_base_only(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.challenge = "ping"
    upstream.add("library/app", IMAGE)
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200


async def test_t30_credentials_do_not_go_where_a_challenge_points(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.realm = "http://127.0.0.3:1/token"
    upstream.add("library/app", IMAGE)
    proxy = await start(hub={"username": "alice", "password": "secret"})
    answer = await proxy.get("/v2/app/manifests/latest")
    assert answer.status == 502
    assert b"not trusted" in answer.body
    assert b"auth_hosts" in answer.body


async def test_t26_authorization_stays_with_the_registry(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.behaviour.redirects = {"blob"}
    upstream.add("library/app", IMAGE)
    proxy = await start()
    assert (await proxy.get(f"/v2/app/blobs/{IMAGE.layers[0]}")).status == 200
    [data] = upstream.cdn_requests
    assert "Authorization" not in data.headers


async def test_t34_what_a_client_sends_as_credentials_is_ignored_and_never_logged(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start()
    answer = await proxy.get("/v2/app/manifests/latest", Authorization="Basic aHViOnNlY3JldA==")
    assert answer.status == 200
    assert all("Authorization" not in request.headers for request in upstream.requests)
    assert "aHViOnNlY3JldA" not in proxy.log.getvalue()


async def test_token_servers_that_fail(start: Start, upstream: FakeUpstream) -> None:
    upstream.auth.scheme = "bearer"
    upstream.add("library/app", IMAGE)
    proxy = await start()
    for code, expected in ((500, 502), (403, 403), (429, 429), (401, 403)):
        upstream.fail(code, kind="token", times=1)
        assert (await proxy.get("/v2/app/manifests/latest")).status == expected, code
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200


@pytest.mark.parametrize("challenge", ['Bearer realm="{token}/token"', 'Basic realm="data"'])
async def test_t30_a_challenge_from_where_we_were_redirected_to_is_not_answered(
    start: Start, upstream: FakeUpstream, challenge: str
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": "secret"}
    upstream.behaviour.redirects = {"blob"}
    upstream.add("library/app", IMAGE)
    proxy = await start(hub={"username": "alice", "password": "secret"})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    said = header("WWW-Authenticate", challenge.format(token=upstream.token_url))
    rule = upstream.fault(status(401), said, kind="data")
    asked = len(upstream.token_requests)
    assert (await proxy.get(f"/v2/app/blobs/{IMAGE.layers[0]}")).status == 502
    assert rule.used == 1
    assert len(upstream.token_requests) == asked
    sent = [request.headers.get("Authorization", "") for request in upstream.requests]
    assert not any(value.startswith("Basic ") for value in sent)
    assert all("Authorization" not in request.headers for request in upstream.cdn_requests)
    upstream.heal()
    assert (await proxy.get(f"/v2/app/blobs/{IMAGE.layers[0]}")).status == 200
    assert len(upstream.token_requests) == asked, "the token is still good"


@pytest.mark.parametrize(("length", "status"), [(8000, 200), (MAX_TOKEN + 1, 502)])
async def test_t49_a_token_is_no_longer_than_its_bound(
    start: Start, upstream: FakeUpstream, length: int, status: int
) -> None:
    upstream.add("library/app", IMAGE)
    upstream.auth.scheme = "bearer"
    upstream.fault(body(json.dumps({"token": "x" * length}).encode()), kind="token")
    proxy = await start()
    answer = await proxy.get("/v2/app/manifests/latest")
    sent = upstream.requests[-1].headers.get("Authorization")
    assert sent == ("Bearer " + "x" * length if status == 200 else None)
    assert (b"token of over" in answer.body) == (status == 502)


@pytest.mark.parametrize(("excess", "is_used"), [(0, True), (1, False)])
async def test_a_scope_of_absurd_length_is_not_used(
    start: Start, upstream: FakeUpstream, excess: int, is_used: bool
) -> None:
    upstream.add("library/app", IMAGE)
    upstream.auth.scheme = "bearer"
    scope = PULL + " " + "x" * (MAX_SCOPE - len(PULL) - 1 + excess)
    challenge = f'Bearer realm="{upstream.token_url}/token",scope="{scope}"'
    upstream.fault(header("WWW-Authenticate", challenge), challenges=True, times=1)
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    assert upstream.token_requests[0].query["scope"] == (scope if is_used else PULL)


async def test_a_token_is_preferred_to_a_password(start: Start, upstream: FakeUpstream) -> None:
    """The password then goes to the token server only."""
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": "secret"}
    upstream.add("library/app", IMAGE)
    both = f'Bearer realm="{upstream.token_url}/token", Basic realm="registry"'
    upstream.fault(header("WWW-Authenticate", both), challenges=True)
    proxy = await start(hub={"username": "alice", "password": "secret"})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    sent = [request.headers.get("Authorization", "none") for request in upstream.requests]
    assert [value.partition(" ")[0] for value in sent] == ["none", "Bearer"]


async def test_only_the_scope_of_a_repository_is_taken_from_a_challenge(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    upstream.auth.scheme = "bearer"
    challenge = f'Bearer realm="{upstream.token_url}/token",service="s",scope="registry:catalog:*"'
    upstream.fault(header("WWW-Authenticate", challenge), challenges=True, times=1)
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    assert list(upstream.token_requests[0].query.items()) == [("service", "s"), ("scope", PULL)]


@pytest.mark.parametrize(
    "realm", ["", "ftp://127.0.0.1/token", "/token", "http://me@127.0.0.1:1/token"]
)
async def test_a_realm_that_cannot_be_used(
    start: Start, upstream: FakeUpstream, realm: str
) -> None:
    upstream.add("library/app", IMAGE)
    upstream.auth.scheme = "bearer"
    upstream.fault(header("WWW-Authenticate", f'Bearer realm="{realm}"'), challenges=True)
    answer = await (await start()).get("/v2/app/manifests/latest")
    assert answer.status == 502
    assert b"no usable token server" in answer.body


async def test_basic_is_not_forgotten_when_access_is_denied(
    start: Start, upstream: FakeUpstream
) -> None:
    """A 403 says nothing against a password, as it may against a token: there is no second try."""
    upstream.auth.scheme = "basic"
    upstream.auth.users = {"alice": "secret"}
    upstream.auth.anonymous = False
    upstream.add("library/app", IMAGE, tags=["a", "b"])
    proxy = await start(hub={"username": "alice", "password": "secret"})
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    upstream.clear()
    upstream.fail(403)
    assert (await proxy.get("/v2/app/manifests/b")).status == 403
    assert upstream.count("GET") == 1


async def test_an_expired_token_may_be_refused_with_403(
    start: Start, upstream: FakeUpstream
) -> None:
    """As by GHCR: a second 403 then means what it says."""
    upstream.auth.scheme = "bearer"
    upstream.add("library/app", IMAGE, tags=["a", "b", "c"])
    proxy = await start()
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    upstream.fail(403, times=1)
    assert (await proxy.get("/v2/app/manifests/b")).status == 200
    assert len(upstream.token_requests) == 2
    upstream.fail(403)
    assert (await proxy.get("/v2/app/manifests/c")).status == 403


@pytest.mark.parametrize(
    ("scheme", "user", "words"),
    [
        ("bearer", {}, b"denies anonymous access"),
        ("bearer", {"username": "alice", "password": "secret"}, b"denies the configured"),
        ("basic", {"username": "alice", "password": "secret"}, b"rejects the configured"),
    ],
)
async def test_a_401_to_an_authorized_request(
    start: Start, upstream: FakeUpstream, scheme: Any, user: dict[str, str], words: bytes
) -> None:
    """A token was issued, so the credentials are right. Without a token they may be wrong."""
    upstream.auth.scheme = scheme
    upstream.auth.users = {"alice": "secret"}
    upstream.add("library/app", IMAGE)
    realm = f'realm="{upstream.token_url}/token"'
    upstream.fault(status(401, headers={"WWW-Authenticate": f"{scheme} {realm}"}))
    proxy = await start(hub=user)
    answer = await proxy.get("/v2/app/manifests/latest")
    assert answer.status == (502 if scheme == "basic" else 403)
    assert words in answer.body
    assert ("credentials rejected" in proxy.log.getvalue()) == (scheme == "basic")


REALM = URL("https://auth.example.com/token")


@pytest.mark.parametrize(
    ("fields", "life"),
    [
        ({"token": "t"}, DEFAULT_LIFE),
        ({"access_token": "t"}, DEFAULT_LIFE),
        ({"token": "t", "access_token": "other"}, DEFAULT_LIFE),
        ({"token": "t", "expires_in": 300}, 300),
        ({"token": "t", "expires_in": 0.5}, 0.5),
        ({"token": "t", "expires_in": LONGEST_LIFE}, LONGEST_LIFE),
        ({"token": "t", "expires_in": LONGEST_LIFE + 1}, DEFAULT_LIFE),
        ({"token": "t", "expires_in": 0}, DEFAULT_LIFE),
        ({"token": "t", "expires_in": -0.5}, DEFAULT_LIFE),
        ({"token": "t", "expires_in": "300"}, DEFAULT_LIFE),
        ({"token": "t", "expires_in": None}, DEFAULT_LIFE),
    ],
)
def test_the_life_of_a_token(fields: dict[str, object], life: float) -> None:
    assert _read_token(json.dumps(fields).encode(), REALM) == ("t", life)


@pytest.mark.parametrize("token", [None, 5, ["t"], "a\nb", "a\u00e4b", "x" * (MAX_TOKEN + 1)])
def test_what_is_no_token(token: object) -> None:
    """It would become a header: a line break there begins another one."""
    with pytest.raises(UpstreamUnavailable, match="token"):
        _read_token(json.dumps({"token": token}).encode(), REALM)


@pytest.mark.parametrize(
    ("host", "own", "shared"),
    [
        ("auth.docker.io", "registry-1.docker.io", True),
        ("docker.io", "registry-1.docker.io", True),
        ("evil.io", "docker.io", False),
        ("a.github.io", "b.github.io", False),
        ("10.0.0.1", "10.0.0.1", False),
        ("a", "a", False),
        ("com", "com", False),
        (f"{'a' * MAX_HOST}.docker.io", "docker.io", False),
        ("docker.io", f"{'a' * MAX_HOST}.docker.io", False),
    ],
)
def test_t30_hosts_of_one_registrable_domain(host: str, own: str, shared: bool) -> None:
    assert shares_domain(host, own) == shared


def test_a_realm_is_a_short_address_in_ascii() -> None:
    assert read_realm("https://auth.example.com/token").host == "auth.example.com"
    for text in (
        "https://ä.example.com/",
        "https://example.com/" + "x" * MAX_REALM,
        "http://[",
        "",
    ):
        assert not read_realm(text).host
