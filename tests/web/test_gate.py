"""Logging in at ``/v2/``: challenges, and log lines of denials."""

import json
from typing import Any

import pytest

from proxy.access.identity import Certificate
from proxy.access.principals import Method, Principal
from tests.access.company import ACCESS, People, basic
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start, until
from tests.web.test_response_cache import head, line

IMAGE = content.image(1, layers=(1000,))
TEAM = "ghcr.io/acme/app"
PATH = f"/v2/{TEAM}/manifests/latest"


@pytest.fixture
async def guarded(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("acme/app", IMAGE, tags=["latest"])
    upstream.add("library/app", IMAGE, tags=["latest"])
    return await company(start, upstream)


async def company(start: Start, upstream: FakeUpstream, **access: Any) -> Proxy:
    hub = {"aliases": ["hub"], "hostnames": ["hub.test"]}
    return await start(
        identifier=People(),
        access=ACCESS | access,
        hub=hub,
        upstreams={"ghcr.io": {"url": upstream.url}},
    )


def challenge(answer: Answer) -> dict[str, str]:
    assert answer.status == 401
    scheme, _, rest = answer.headers["WWW-Authenticate"].partition(" ")
    assert scheme == "Bearer"
    pairs = (pair.partition("=") for pair in rest.split(","))
    return {name: value.strip('"') for name, _, value in pairs}


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer anonymous"}, 200),
        ({"Authorization": "Bearer ann"}, 200),
        ({"Authorization": basic("ann")}, 200),
        ({"Authorization": basic("mallory")}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
    ],
)
async def test_the_base_asks_for_a_login(guarded: Proxy, sent: dict[str, str], status: int) -> None:
    answer = await guarded.get("/v2/", **sent)
    assert answer.status == status
    if status == 401:
        found = challenge(answer)
        assert found["realm"] == f"http://{guarded.app.address}/-/token"
        assert found["service"] == guarded.app.address
        assert "scope" not in found


async def test_a_closed_proxy_refuses_anonymous_tokens(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await company(start, upstream, anonymous=False)
    for path in ("/v2/", PATH, "/v2/_catalog", "/v2/other.example/app/tags/list"):
        challenge(await proxy.get(path, Authorization="Bearer anonymous"))
    assert (await proxy.get("/v2/", Authorization="Bearer bob")).status == 200
    unknown = await proxy.get("/v2/other.example/app/tags/list", Authorization="Bearer bob")
    assert unknown.status == 404
    assert not upstream.requests


async def test_a_proxy_that_is_closed_before_it_has_users_lets_nobody_in(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(access={"anonymous": False})
    for path in ("/v2/", PATH):
        assert (await proxy.get(path)).status == 401
    assert not upstream.requests


async def test_without_access_nobody_has_to_log_in(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])
    for sent in ({}, {"Authorization": basic("mallory")}, {"Authorization": "Bearer x"}):
        assert (await proxy.get("/v2/", **sent)).status == 200
        assert (await proxy.get("/v2/library/app/manifests/latest", **sent)).status == 200


@pytest.mark.parametrize(
    ("path", "headers", "ns", "scope"),
    [
        (PATH, {}, "ghcr.io", TEAM),
        ("/v2/acme/app/blobs/" + IMAGE.layers[0] + "?ns=ghcr.io", {}, "ghcr.io", "acme/app"),
        ("/v2/secret/app/tags/list", {}, "docker.io", "secret/app"),
        ("/v2/hub/secret/app/tags/list", {}, "docker.io", "hub/secret/app"),
        ("/v2/secret/app/tags/list", {"Host": "hub.test"}, "docker.io", "secret/app"),
        (f"/v2/acme/app/referrers/{IMAGE.digest}?ns=ghcr.io", {}, "ghcr.io", "acme/app"),
    ],
)
async def test_the_challenge_names_upstream_and_repository(
    guarded: Proxy, path: str, headers: dict[str, str], ns: str, scope: str
) -> None:
    host = headers.get("Host", guarded.app.address)
    for sent in ({}, {"Authorization": basic("mallory")}):
        found = challenge(await guarded.get(path, **headers, **sent))
        assert found == {
            "realm": f"http://{host}/-/token?ns={ns}",
            "service": host,
            "scope": f"repository:{scope}:pull",
        }


async def test_a_token_that_does_not_suffice_is_not_repeated(guarded: Proxy) -> None:
    found = challenge(await guarded.get(PATH, Authorization="Bearer anonymous"))
    assert found["error"] == "insufficient_scope"
    found = challenge(await guarded.get(PATH, Authorization="Bearer wrong"))
    assert found["error"] == "invalid_token", "another token helps"


@pytest.mark.parametrize(
    ("trusted", "headers", "origin"),
    [
        ([], {"X-Forwarded-Proto": "https", "X-Forwarded-Host": "evil.test"}, None),
        (["127.0.0.1"], {"X-Forwarded-Proto": "https"}, "https"),
        (
            ["127.0.0.1"],
            {"X-Forwarded-Proto": "https, http", "X-Forwarded-Host": "pull.test:8443, inner"},
            "https://pull.test:8443",
        ),
        (["127.0.0.1"], {"Forwarded": 'for=x;proto=https;host="a.test", for=y'}, "https://a.test"),
        (["127.0.0.1"], {"X-Forwarded-Proto": "gopher"}, "https"),
        (["127.0.0.1"], {"X-Forwarded-Host": 'a.test",x="'}, "http://localhost"),
    ],
)
async def test_the_realm_is_the_address_that_the_client_used(
    start: Start,
    upstream: FakeUpstream,
    trusted: list[str],
    headers: dict[str, str],
    origin: str | None,
) -> None:
    proxy = await company(start, upstream, trusted_proxies=trusted)
    origin = origin or "http"
    origin = origin if "://" in origin else f"{origin}://{proxy.app.address}"
    found = challenge(await proxy.get("/v2/", **headers))
    assert found["realm"] == f"{origin}/-/token"
    assert found["service"] == origin.partition("://")[2]


async def test_a_malformed_host_does_not_reach_the_challenge(guarded: Proxy) -> None:
    async with line(guarded) as client:
        answer = await client.ask(b'GET /v2/ HTTP/1.1\r\nHost: a",realm="http://evil\r\n\r\n')
    if answer.status == 401:
        assert 'realm="http://localhost/-/token"' in answer["WWW-Authenticate"]
    else:
        assert answer.status == 400


async def test_a_denial_says_why_and_a_user_is_not_asked_to_log_in(guarded: Proxy) -> None:
    for path, message in (
        ("/v2/bad/miner/manifests/1", "SEC-12"),
        (PATH, "access denied"),
        ("/v2/ghcr.io/acme/absent/manifests/latest", "access denied"),
    ):
        answer = await guarded.get(path, Authorization="Bearer bob")
        [error] = json.loads(answer.body)["errors"]
        assert (answer.status, error["code"], error["message"]) == (403, "DENIED", message)
        assert "WWW-Authenticate" not in answer.headers


async def test_the_log_names_users_and_rules_and_no_secret(guarded: Proxy) -> None:
    await guarded.get("/v2/library/app/tags/list", Authorization=basic("ann"))
    await guarded.get("/v2/bad/miner/tags/list", Authorization="Bearer bob")
    await guarded.get("/v2/secret/app/tags/list")
    await until(lambda: guarded.log.getvalue().count('"event": "request"') == 3)
    events = [json.loads(text) for text in guarded.log.getvalue().splitlines()]
    requests = [event for event in events if event["event"] == "request"]
    assert [(event.get("user"), event.get("rule")) for event in requests] == [
        ("ann", None),
        ("bob", "1: deny pull docker.io/*/miner* to everybody"),
        (None, "no rule matches"),
    ]
    assert basic("ann").split()[1] not in guarded.log.getvalue()


async def test_decisions_are_counted_by_outcome(guarded: Proxy) -> None:
    async def counted(outcome: str) -> float:
        page = (await guarded.get("/metrics")).body.decode()
        name = f'millpond_access_decisions_total{{outcome="{outcome}"}} '
        [found] = [it for it in page.splitlines() if it.startswith(name)]
        return float(found.split()[1])

    allowed = await counted("allowed")
    for _ in range(4):
        assert (await guarded.get(PATH, Authorization="Bearer ann")).status == 200
    await guarded.get(PATH, Authorization="Bearer bob")
    await guarded.get(PATH)
    assert await counted("denied") == 1
    assert await counted("login") == 1
    assert await counted("allowed") - allowed >= 4


class Certified(People):
    """Bytes are the same; who sends them is in the certificate, here given by the port."""

    def __init__(self) -> None:
        super().__init__()
        self.user = "ann"

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        return self._user(address, self.user, Method.CERTIFICATE)


async def test_the_same_bytes_from_another_user_are_decided_and_logged_anew(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("acme/app", IMAGE, tags=["latest"])
    people = Certified()
    proxy = await start(
        identifier=people, access=ACCESS, upstreams={"ghcr.io": {"url": upstream.url}}
    )
    request = head(PATH, "User-Agent: same/1")
    async with line(proxy) as client:
        for user, status in (("ann", 200), ("ann", 200), ("ann", 200), ("bob", 403)):
            people.user = user
            assert (await client.ask(request)).status == status
        people.user = "ci:acme/app"
        assert (await client.ask(request)).status == 200

    def requests() -> list[dict[str, Any]]:
        events = [json.loads(text) for text in proxy.log.getvalue().splitlines()]
        return [event for event in events if event["event"] == "request"]

    await until(lambda: len(requests()) == 5)
    events = requests()
    assert [event["user"] for event in events] == ["ann", "ann", "ann", "bob", "ci:acme/app"]


async def test_a_revoked_token_does_not_reach_a_remembered_answer(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("acme/app", IMAGE, tags=["latest"])
    people = People()
    proxy = await start(
        identifier=people, access=ACCESS, upstreams={"ghcr.io": {"url": upstream.url}}
    )
    request = head(PATH, "Authorization: Bearer ann")
    async with line(proxy) as client:
        for _ in range(3):
            assert (await client.ask(request)).status == 200
        people.users.remove("ann")
        assert (await client.ask(request)).status == 401
