"""Content is stored once, and served to clients only as upstream lets each of them read it."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.access import callers
from proxy.settings import Settings
from tests.access.people import basic, bearer, write_token, write_users
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.web.pulling_as import (
    ABSENT,
    IMAGE,
    NAME,
    OTHER,
    PASSWORDS,
    PATHS,
    STALE,
    TTL,
    Client,
    everything,
    prepare,
    started,
)

DIALECTS = {
    "basic": ("basic", "distribution"),
    "distribution": ("bearer", "distribution"),
    "hub": ("bearer", "hub"),
    "ghcr": ("bearer", "ghcr"),
    "gitlab": ("bearer", "gitlab"),
}
PATIENCE = {"retries": 0, "resumes": 0, "failures": 1_000_000, "cool_down": 0}
FAST = ("a tag", "HEAD of a tag", "a manifest", "HEAD of a manifest", "a small blob")


@pytest.fixture(params=DIALECTS)
def private(request: pytest.FixtureRequest, upstream: FakeUpstream) -> FakeUpstream:
    prepare(upstream, *DIALECTS[request.param])
    return upstream


@pytest.fixture
def simple(upstream: FakeUpstream) -> FakeUpstream:
    prepare(upstream, "bearer")
    return upstream


@pytest.fixture
def basics(upstream: FakeUpstream) -> FakeUpstream:
    prepare(upstream, "basic")
    return upstream


async def fast(proxy: Proxy) -> int:
    """Return how many requests the response cache has answered."""
    page = (await proxy.get("/metrics")).body.decode()
    found = re.search(r"^millpond_prepared_answers_total (\S+)$", page, re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


@pytest.mark.parametrize("direct", [False, True], ids=["token", "basic"])
async def test_each_client_gets_what_upstream_gives_it(
    start: Start, private: FakeUpstream, *, direct: bool
) -> None:
    """Cold, warm, and from the response cache."""
    proxy = await started(start)
    ann, bob = Client(proxy, "ann", direct), Client(proxy, "bob", direct)
    nobody = Client(proxy, None, direct)
    assert set((await bob.all()).values()) <= {403, 404}
    assert await nobody.all() == everything(401)
    assert not proxy.held()
    for _ in range(3):
        assert await ann.all() == everything(200)
        await proxy.settled()
        assert set((await bob.all()).values()) <= {403, 404}
        assert await nobody.all() == everything(401)
    assert await bob.all(OTHER) == everything(200)
    assert set((await ann.all(OTHER)).values()) <= {403, 404}
    assert (await fast(proxy) > 0) == (not direct)


async def confirmations(proxy: Proxy) -> dict[str, int]:
    page = (await proxy.get("/metrics")).body.decode()
    pattern = r'^millpond_confirmations_total\{outcome="(\w+)",upstream="docker.io"\} (\S+)$'
    return {name: int(float(count)) for name, count in re.findall(pattern, page, re.MULTILINE)}


async def test_confirmations_are_counted(start: Start, simple: FakeUpstream, clock: Clock) -> None:
    proxy = await started(start)
    ann, bob = Client(proxy, "ann"), Client(proxy, "bob")
    for _ in range(3):
        assert await ann.see("a tag") == 200
    counted = {"confirmed": 1, "refused": 1, "failed": 0, "stale": 0}  # first without a login
    assert await confirmations(proxy) == counted
    assert await bob.see("a tag") in (403, 404)
    assert await confirmations(proxy) == (counted := counted | {"refused": 2})
    clock.advance(TTL)
    simple.fail(503)
    for _ in range(2):
        assert await ann.see("a tag") == 200
    assert await confirmations(proxy) == counted | {"failed": 1, "stale": 2}


async def test_repeated_requests_are_fast_for_the_confirmed_only(
    start: Start, simple: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start)
    ann, bob = Client(proxy, "ann"), Client(proxy, "bob")
    for _ in range(3):
        await ann.all()
        await bob.all()
        await proxy.settled()
    before = await fast(proxy)
    assert await ann.all() == everything(200)
    assert await fast(proxy) - before == len(FAST)
    assert await bob.all() == everything(403)
    assert await fast(proxy) - before == len(FAST)
    simple.auth.private[NAME] = set()
    clock.advance(TTL)
    assert await ann.see("a tag") == 403
    assert await fast(proxy) - before == len(FAST)


@pytest.mark.parametrize("path", PATHS)
async def test_a_refusal_does_not_show_what_is_held(
    start: Start, private: FakeUpstream, path: str
) -> None:
    """The same requests to upstream, status and error, for what is held and for what is not."""
    proxy = await started(start)
    assert await Client(proxy, "amy").all() == everything(200)
    private.auth.private["team/cold"] = {"ann"}
    private.add("team/cold", IMAGE, tags=["latest"])
    bob = Client(proxy, "bob", direct=True)
    await bob.see("tags", OTHER)
    seen = []
    for name in (NAME, "team/cold"):
        private.clear()
        method, rest = PATHS[path]
        answer = await bob.ask(method, f"/v2/{name}/{rest}")
        asked = [
            (record.method, record.kind, record.reference, record.status)
            for record in (*private.requests, *private.token_requests)
        ]
        code = json.loads(answer.body)["errors"][0]["code"] if answer.body else ""
        seen.append((answer.status, code, answer.headers.get("Cache-Status"), asked))
    assert seen[0] == seen[1]
    assert seen[0][0] in (403, 404)
    assert seen[0][3]


async def test_what_does_not_exist_looks_like_what_is_hidden(
    start: Start, upstream: FakeUpstream
) -> None:
    prepare(upstream, "bearer", "hub")
    proxy = await started(start)
    await Client(proxy, "ann").all()
    bob = Client(proxy, "bob")
    for path in PATHS:
        assert await bob.see(path) == await bob.see(path, "team/unknown") == 403


async def test_upstream_is_asked_once_per_ttl(
    start: Start, basics: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start)
    ann, amy = Client(proxy, "ann"), Client(proxy, "amy")
    await ann.see("a tag")
    await ann.see("a large blob")
    await ann.see("a small blob")
    await proxy.settled()
    for client in (ann, amy):
        basics.clear()
        clock.advance(TTL)
        for path in ("a tag", "a manifest", "a large blob", "a small blob", "HEAD of a blob"):
            for _ in range(3):
                assert await client.see(path) == 200
        asked = [(record.method, record.kind) for record in basics.requests]
        assert asked == [("HEAD", "manifest")]
        user = basic(client.user or "", PASSWORDS[client.user or ""])
        assert basics.requests[0].headers["Authorization"] == user
    basics.clear()
    clock.advance(TTL - 1)
    assert await ann.see("a tag") == 200
    assert len(basics.requests) == 1
    clock.advance(2)  # from the confirmation, not from the last use
    assert await amy.see("a tag") == 200
    assert len(basics.requests) == 2


async def test_requests_at_the_same_time_share_one_confirmation(
    start: Start, basics: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start)
    ann = Client(proxy, "ann")
    await ann.see("a tag")
    await ann.see("a large blob")
    clock.advance(TTL)
    gate = basics.hold()
    basics.clear()
    pulls = [asyncio.create_task(ann.see("a tag")) for _ in range(5)]
    pulls += [asyncio.create_task(ann.see("a large blob")) for _ in range(5)]
    await until(lambda: len(basics.requests) == 1 and proxy.app.responses() == 10)
    gate.set()
    assert set(await asyncio.gather(*pulls)) == {200}
    assert len(basics.requests) == 1


async def test_a_missing_object_does_not_hide_the_repository(
    start: Start, private: FakeUpstream, clock: Clock
) -> None:
    """cosign asks for a tag that seldom exists; pulls at the same time do not get its 404."""
    proxy = await started(start)
    ann, bob = Client(proxy, "ann"), Client(proxy, "bob")
    await ann.see("a tag")
    clock.advance(TTL)
    missing = f"/v2/{NAME}/manifests/sha256-{'0' * 64}.sig"
    gate = private.hold(kind="manifest", reference=f"sha256-{'0' * 64}.sig", method="HEAD")
    asking = asyncio.create_task(ann.ask("GET", missing))
    await until(lambda: private.count(ref=f"sha256-{'0' * 64}.sig") >= 1)
    pull = asyncio.create_task(ann.see("a tag"))
    gate.set()
    assert (await asking).status == 404
    assert await pull == 200
    assert await ann.see("a tag") == 200
    assert (await bob.ask("GET", missing)).status in (403, 404)


async def test_a_client_joins_a_download_after_its_own_confirmation(
    start: Start, private: FakeUpstream
) -> None:
    proxy = await started(start)
    ann, amy, bob = (Client(proxy, user) for user in ("ann", "amy", "bob"))
    release = private.stall(100_000, kind="blob")
    first = asyncio.create_task(ann.see("a large blob"))
    await until(lambda: private.bodies(IMAGE.layers[1]) == 1)
    assert await bob.see("a large blob") in (403, 404)
    assert await bob.see("HEAD of a blob") in (403, 404)
    assert await Client(proxy, None).see("a large blob") == 401
    second = asyncio.create_task(amy.see("a large blob"))
    await until(lambda: proxy.app.responses() == 2)
    private.auth.private[NAME] = {"amy"}  # what has begun continues
    release.set()
    assert await asyncio.gather(first, second) == [200, 200]
    assert private.bodies(IMAGE.layers[1]) == 1


async def test_a_client_begins_anew_if_upstream_refuses_the_one_it_joined(
    start: Start, basics: FakeUpstream
) -> None:
    proxy = await started(start)
    ann, amy = Client(proxy, "ann"), Client(proxy, "amy")
    assert await ann.see("a tag") == 200
    assert await amy.see("a tag") == 200
    basics.auth.private[NAME] = {"amy"}
    gate = basics.hold(kind="blob", times=1, challenges=True)
    first = asyncio.create_task(ann.see("a large blob"))
    await until(lambda: basics.count(kind="blob") == 1)
    second = asyncio.create_task(amy.see("a large blob"))
    await until(lambda: proxy.app.responses() == 2)
    gate.set()
    assert await asyncio.gather(first, second) == [403, 200]


async def test_clients_do_not_share_a_request_for_a_manifest(
    start: Start, basics: FakeUpstream
) -> None:
    """One that upstream has refused since gets its refusal, the other one the manifest."""
    proxy = await started(start)
    ann, amy = Client(proxy, "ann"), Client(proxy, "amy")
    await ann.see("tags")
    await amy.see("tags")
    basics.auth.private[NAME] = {"amy"}
    gate = basics.hold(kind="manifest", method="GET")
    pulls = [asyncio.create_task(client.see("a manifest")) for client in (ann, amy)]
    await until(lambda: basics.count("GET", "manifest") == 2)
    gate.set()
    assert await asyncio.gather(*pulls) == [403, 200]
    assert await ann.see("a manifest") == 403  # the refusal ended its confirmation
    assert await amy.see("a manifest") == 200


async def test_a_revoked_client_is_refused_after_the_ttl(
    start: Start, private: FakeUpstream, clock: Clock
) -> None:
    """Also if its token of upstream lives longer: the token server is asked again."""
    private.auth.expires_in = 7200
    proxy = await started(start)
    ann, amy = Client(proxy, "ann"), Client(proxy, "amy")
    assert await ann.all() == await amy.all() == everything(200)
    private.auth.private[NAME] = {"amy"}
    clock.advance(TTL - 1)
    assert await ann.see("a tag") == 200
    clock.advance(1)
    assert set((await ann.all()).values()) <= {403, 404}
    assert await amy.all() == everything(200)
    private.fail(status=503)
    private.fail(status=503, kind="token")
    clock.advance(TTL)
    assert await ann.see("a tag") in (403, 404, 502)
    assert await amy.see("a tag") == 200


async def test_refusals_are_believed_for_a_moment_only(
    start: Start, basics: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start)
    bob = Client(proxy, "bob")
    assert await bob.see("a tag") == 403
    asked = len(basics.requests)
    assert await bob.see("a manifest") == 403
    assert len(basics.requests) == asked
    basics.auth.private[NAME].add("bob")
    clock.advance(20)
    assert await bob.see("a tag") == 200


@pytest.mark.parametrize("status", [429, 500, 503])
async def test_an_unknown_answer_is_never_a_yes(
    start: Start, private: FakeUpstream, clock: Clock, status: int
) -> None:
    """While upstream fails, those confirmed within caller_stale are served, and nobody else."""
    proxy = await started(start)
    ann, amy = Client(proxy, "ann"), Client(proxy, "amy")
    for _ in range(2):
        assert await ann.all() == everything(200)
    await proxy.settled()
    await amy.prepare()
    private.fail(status=status)
    private.fail(status=status, kind="token")
    clock.advance(TTL)
    served = {path for path in PATHS if await ann.see(path) == 200}
    assert served == set(PATHS)
    assert {await amy.see(path) for path in PATHS} <= {429, 502}
    assert await Client(proxy, "bob").see("a tag") in (401, 403, 429, 502)
    clock.advance(STALE - TTL - 1)
    assert await ann.see("a tag") == 200
    clock.advance(1)
    assert {await ann.see(path) for path in PATHS} <= {429, 502}


async def test_an_outage_does_not_delay_each_request_of_the_confirmed(
    start: Start, simple: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start, timeouts={"check": "1s"})
    ann = Client(proxy, "ann")
    await ann.all()
    gate = simple.hold()
    simple.clear()
    clock.advance(TTL)
    async with asyncio.timeout(20):
        for _ in range(20):
            assert await ann.see("a tag") == 200
    assert len(simple.requests) == 1
    gate.set()


async def test_a_failing_upstream_is_not_asked_again_at_once(
    start: Start, basics: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start)
    ann = Client(proxy, "ann")
    assert await ann.see("a manifest") == 200
    basics.fail(status=503)
    basics.clear()
    clock.advance(TTL)
    for asked in (1, 1, 1):
        assert await ann.see("a manifest") == 200
        assert len(basics.requests) == asked
    clock.advance(11)
    assert await ann.see("a manifest") == 200
    assert len(basics.requests) == 2


async def test_a_login_that_is_not_kept_any_more_is_asked_for(
    start: Start, simple: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where an anonymous client may pull, and for a token that was just used."""
    simple.auth.private.pop(NAME)
    proxy = await started(start)
    login = basic("ann", PASSWORDS["ann"])
    path = f"/v2/{NAME}/manifests/latest"
    url = f"http://{proxy.app.address}/-/token?ns=docker.io&scope=repository:{NAME}:pull"
    async with proxy.client.get(url, headers={"Authorization": login}) as answer:
        token = bearer((await answer.json())["token"])
    for _ in range(3):
        assert (await proxy.get(path, Authorization=token)).status == 200
    monkeypatch.setattr(callers, "KEPT_SECONDS", 0.0)
    await proxy.get(path, Authorization=token)  # its last use
    answered = await proxy.get(path, Authorization=token)
    assert answered.status == 401
    assert "ns=docker.io" in answered.headers["WWW-Authenticate"]


async def test_a_registry_without_lists_of_tags(
    start: Start, basics: FakeUpstream, clock: Clock
) -> None:
    """A request that waits for the confirmation of another one does not get its 404."""
    basics.fail(status=405, kind="tags")
    proxy = await started(start)
    ann = Client(proxy, "ann", direct=True)
    assert await ann.see("a manifest") == 200
    clock.advance(TTL)
    gate = basics.hold(reference="missing")
    asking = asyncio.create_task(ann.ask("GET", f"/v2/{NAME}/manifests/missing"))
    await until(lambda: basics.count(ref="missing") == 1)
    pull = asyncio.create_task(ann.see("a manifest"))
    await until(lambda: proxy.app.responses() == 2)
    gate.set()
    assert (await asking).status == 404
    assert await pull == 200


async def test_a_missing_object_may_confirm_the_repository(
    start: Start, basics: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start)
    ann = Client(proxy, "ann", direct=True)
    assert await ann.see("a manifest") == 200
    clock.advance(TTL)
    assert (await ann.ask("GET", f"/v2/{NAME}/manifests/missing")).status == 404
    basics.clear()
    assert await ann.see("a manifest") == 200
    assert not basics.requests


async def test_offline_serves_the_confirmed_only(
    start: Start, simple: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start)
    ann, amy = Client(proxy, "ann"), Client(proxy, "amy")
    await ann.all()
    await ann.ask("GET", f"/v2/{NAME}/blobs/{IMAGE.config}")
    await proxy.settled()
    await amy.prepare()
    hub = {"url": simple.url, "credentials": "caller", "library_prefix": False}
    changed = {"offline": True, "patience": PATIENCE, "upstreams": {"docker.io": hub}}
    await proxy.app.reload(Settings.model_validate(changed))
    asked = len(simple.requests)
    assert await amy.see("a manifest") == 403
    assert await ann.see("a manifest") == 200
    clock.advance(STALE)
    assert await ann.see("a manifest") == 403
    assert len(simple.requests) == asked


async def test_after_a_restart_clients_log_in_again(start: Start, private: FakeUpstream) -> None:
    proxy = await started(start)
    ann = Client(proxy, "ann")
    await ann.all()
    await proxy.settled()
    await proxy.close()
    proxy = await started(start)
    held = proxy.held()
    assert held
    answer = await proxy.get(f"/v2/{NAME}/manifests/latest", Authorization=ann.tokens[NAME])
    assert answer.status == 401
    assert "ns=docker.io" in answer.headers["WWW-Authenticate"]
    assert set((await Client(proxy, "bob").all()).values()) <= {403, 404}
    assert await Client(proxy, "ann").all() == everything(200)


async def test_after_a_restart_an_outage_serves_nobody(start: Start, simple: FakeUpstream) -> None:
    proxy = await started(start)
    await Client(proxy, "ann").all()
    await proxy.close()
    proxy = await started(start)
    simple.fail(status=503)
    assert {await Client(proxy, "ann", direct=True).see(path) for path in PATHS} == {502}


async def test_a_reload_forgets_confirmations_only_if_the_upstream_changes(
    start: Start, basics: FakeUpstream
) -> None:
    proxy = await started(start)
    ann = Client(proxy, "ann")
    await ann.see("a manifest")
    basics.clear()
    hub = {"url": basics.url, "credentials": "caller", "library_prefix": False}
    for seconds, asked in ((300, 1), (300, 1), (200, 2)):
        document = {"upstreams": {"docker.io": hub | {"caller_ttl": f"{seconds}s"}}}
        await proxy.app.reload(Settings.model_validate(document))
        assert await ann.see("a manifest") == 200
        heads = [record for record in basics.requests if record.headers.get("Authorization")]
        assert len(heads) == asked
    plain = {"url": basics.url, "library_prefix": False}
    await proxy.app.reload(Settings.model_validate({"upstreams": {"docker.io": plain}}))
    assert (await proxy.get("/v2/")).status == 200


@pytest.mark.parametrize("dialect", ["distribution", "hub", "ghcr"])
async def test_a_public_repository_is_public_for_all(
    start: Start, upstream: FakeUpstream, clock: Clock, dialect: Any
) -> None:
    prepare(upstream, "bearer", dialect)
    del upstream.auth.private[NAME]
    proxy = await started(start)
    nobody, bob = Client(proxy, None), Client(proxy, "bob")
    assert await nobody.all() == everything(200)
    assert await bob.see("a tag") == 200  # by its own token, or the anonymous one
    wrong = Client(proxy, "ann", direct=True)
    upstream.auth.users["ann"] = "changed"
    upstream.clear()
    assert await wrong.see("a manifest") == 200
    assert not upstream.requests
    upstream.auth.private[NAME] = {"amy"}
    clock.advance(TTL)
    assert await nobody.all() == everything(401)
    assert await bob.see("a tag") == 403


async def test_the_catalogue_names_what_is_confirmed(
    start: Start, simple: FakeUpstream, clock: Clock
) -> None:
    proxy = await started(start, catalog=True)
    ann, bob = Client(proxy, "ann"), Client(proxy, "bob")
    await ann.see("a tag")
    await bob.see("a tag", OTHER)

    async def names(**headers: str) -> object:
        return json.loads((await proxy.get("/v2/_catalog", **headers)).body)["repositories"]

    assert await names(Authorization=ann.tokens[NAME]) == [f"docker.io/{NAME}"]
    assert await names(Authorization=bob.login or "") == [f"docker.io/{OTHER}"]
    assert await names() == []
    clock.advance(TTL)
    assert await names(Authorization=ann.tokens[NAME]) == []


async def test_identity_tokens_go_upstream_as_refresh_tokens(
    start: Start, simple: FakeUpstream
) -> None:
    simple.auth.identity_tokens["identity-of-ann"] = "ann"
    proxy = await started(start)
    url = f"http://{proxy.app.address}/-/token?ns=docker.io&scope=repository:{NAME}:pull"
    form = {"grant_type": "refresh_token", "refresh_token": "identity-of-ann"}
    async with proxy.client.post(url, data=form) as answer:
        posted = bearer((await answer.json())["token"])
    sent = {"Authorization": basic("<token>", "identity-of-ann")}
    async with proxy.client.get(url, headers=sent) as answer:
        got = bearer((await answer.json())["token"])
    for token in (posted, got):
        path = f"/v2/{NAME}/manifests/latest"
        assert (await proxy.get(path, Authorization=token)).status == 200
    forms = [dict(record.form) for record in simple.token_requests]
    assert {form["refresh_token"] for form in forms} == {"identity-of-ann"}


@pytest.mark.parametrize("scheme", ["basic", "bearer"])
@pytest.mark.parametrize("upstream_name", ["docker.io", "private.example"])
async def test_a_login_is_tested_by_upstream(
    start: Start, upstream: FakeUpstream, scheme: str, upstream_name: str
) -> None:
    """Without a scope, as docker login asks; the default upstream, or the one of ``ns``."""
    prepare(upstream, scheme)
    entry = {"url": upstream.url, "credentials": "caller"}
    proxy = await started(start, upstreams={"private.example": entry})
    url = f"http://{proxy.app.address}/-/token?service=x&ns={upstream_name}"
    for password, status in ((PASSWORDS["ann"], 200), ("wrong", 401)):
        sent = {"Authorization": basic("ann", password)}
        async with proxy.client.get(url, headers=sent) as answer:
            assert answer.status == status
            made = await answer.json()
    async with proxy.client.get(
        url, headers={"Authorization": basic("ann", PASSWORDS["ann"])}
    ) as answer:
        made = await answer.json()
    assert (await proxy.get("/v2/", Authorization=bearer(made["token"]))).status == 200
    assert (await proxy.get("/v2/")).status == 401


async def test_a_login_by_path_goes_to_the_upstream_of_its_scope(
    start: Start, upstream: FakeUpstream
) -> None:
    prepare(upstream, "bearer")
    entry = {"url": upstream.url, "credentials": "caller"}
    proxy = await started(start, hub={"credentials": None}, upstreams={"private.example": entry})
    scope = f"repository:private.example/{NAME}:pull"
    url = f"http://{proxy.app.address}/-/token?service=x&scope={scope}"
    sent = {"Authorization": basic("ann", PASSWORDS["ann"])}
    async with proxy.client.get(url, headers=sent) as answer:
        token = bearer((await answer.json())["token"])
    path = f"/v2/private.example/{NAME}/manifests/latest"
    assert (await proxy.get(path, Authorization=token)).status == 200
    users = {record.headers.get("Authorization") for record in upstream.token_requests}
    assert users == {basic("ann", PASSWORDS["ann"])}


async def test_a_login_goes_to_its_own_upstream_only(start: Start, simple: FakeUpstream) -> None:
    async with FakeUpstream() as other:
        prepare(other, "bearer")
        entry = {"url": other.url, "credentials": "caller"}
        proxy = await started(start, upstreams={"private.example": entry})
        ann = Client(proxy, "ann")
        assert await ann.see("a tag") == 200
        token = ann.tokens[NAME]
        path = f"/v2/private.example/{NAME}/manifests/latest"
        assert (await proxy.get(path, Authorization=token)).status == 401
        url = f"http://{proxy.app.address}/-/token?scope=repository:{NAME}:pull"
        both = f"{url}&scope=repository:private.example/{NAME}:pull"
        sent = {"Authorization": basic("ann", PASSWORDS["ann"])}
        async with proxy.client.get(both, headers=sent) as answer:
            token = bearer((await answer.json())["token"])
        assert (await proxy.get(path, Authorization=token)).status == 401
        everywhere = [*other.requests, *other.token_requests]
        assert everywhere
        assert not any("Basic" in record.headers.get("Authorization", "") for record in everywhere)


async def test_users_of_ours_are_anonymous_upstream(
    start: Start, simple: FakeUpstream, tmp_path: Path
) -> None:
    """Their passwords never go there; with the login of the pull secret beside it both count."""
    write_users(tmp_path / "htpasswd", carl="secret-of-carl")
    rules = [{"allow": "pull", "images": ["**"], "to": ["user:carl"]}]
    access = {"htpasswd_file": str(tmp_path / "htpasswd"), "rules": rules}
    proxy = await started(start, access=access)
    simple.add("team/public", IMAGE, tags=["latest"])
    carl = basic("carl", "secret-of-carl")
    private, public = f"/v2/{NAME}/manifests/latest", "/v2/team/public/manifests/latest"
    assert (await proxy.get(public, Authorization=carl)).status == 200
    assert (await proxy.get(private, Authorization=carl)).status == 403
    assert (await Client(proxy, "ann").see("a tag")) == 401  # the rules come first
    asked = [*simple.requests, *simple.token_requests]
    assert not any("Basic" in record.headers.get("Authorization", "") for record in asked)
    url = f"http://{proxy.app.address}/-/token?ns=docker.io"
    form = {
        "grant_type": "password",
        "username": "ann",
        "password": PASSWORDS["ann"],
        "scope": f"repository:{NAME}:pull",
    }
    async with proxy.client.post(url, data=form, headers={"Authorization": carl}) as answer:
        token = bearer((await answer.json())["token"])
    assert (await proxy.get(private, Authorization=token)).status == 200


async def test_tokens_of_ours_never_go_upstream(
    start: Start, basics: FakeUpstream, tmp_path: Path
) -> None:
    """Revoked access tokens, and tokens of the token endpoint, also as a password."""
    file = tmp_path / "tokens"
    revoked, other = write_token(file, "robot"), write_token(file, "other")
    proxy = await started(start, access={"tokens_file": str(file)})
    path = f"/v2/{NAME}/manifests/latest"
    url = f"http://{proxy.app.address}/-/token?ns=docker.io&scope=repository:{NAME}:pull"
    async with proxy.client.get(url, headers={"Authorization": basic("any", other)}) as answer:
        issued = (await answer.json())["token"]
    for token in (revoked, issued, f"{issued}forged"):
        await proxy.get(path, Authorization=basic("any", token))
        form = {"grant_type": "refresh_token", "refresh_token": token}
        async with proxy.client.post(url, data=form) as answer:
            again = bearer((await answer.json())["token"])
        assert (await proxy.get(path, Authorization=again)).status in (401, 403)
    assert basics.requests
    assert not any("Authorization" in record.headers for record in basics.requests)


async def test_rejected_logins_are_slowed_down(start: Start, basics: FakeUpstream) -> None:
    """Nobody guesses passwords of the upstream through this proxy."""
    proxy = await started(start)
    path = f"/v2/{NAME}/manifests/latest"
    found = [
        (await proxy.get(path, Authorization=basic("ann", f"guess-{number}"))).status
        for number in range(12)
    ]
    assert found == [403] * 10 + [401] * 2
    guesses = {record.headers.get("Authorization") for record in basics.requests}
    assert len(guesses - {None}) == 10
    assert basics.count() <= 31
    assert (await proxy.get("/-/readyz")).status == 200


async def test_wrong_logins_do_not_stop_others(start: Start, private: FakeUpstream) -> None:
    """They are no failures of the registry, and its rate limit for one is not one for others."""
    patience = {"retries": 0, "failures": 2, "cool_down": "60s"}
    proxy = await started(start, patience=patience)
    path = f"/v2/{NAME}/manifests/latest"
    for number in range(5):
        await proxy.get(path, Authorization=basic("bob", f"guess-{number}"))
    amy = Client(proxy, "amy")
    private.fail(status=429, retry_after=60, method="HEAD", times=1)
    assert await amy.see("HEAD of a tag") == 429
    assert await Client(proxy, "ann").all() == everything(200)


async def test_no_login_is_kept_or_logged(start: Start, private: FakeUpstream) -> None:
    proxy = await started(start, catalog=True)
    clients = [Client(proxy, user, direct) for user in PASSWORDS for direct in (False, True)]
    for client in clients:
        await client.all()
        await client.ask("GET", f"/v2/{NAME}/manifests/{PASSWORDS['bob']}")
    pages = [(await proxy.get(page)).body for page in ("/metrics", "/-/stats", "/")]
    tokens = [token for client in clients for token in client.tokens.values()]
    await proxy.settled()
    await proxy.close()
    files = [path.read_bytes() for path in proxy.storage.rglob("*") if path.is_file()]
    upstream_tokens = [f"token-1-{user}" for user in PASSWORDS]
    for secret in (*PASSWORDS.values(), *(basic(*pair)[6:] for pair in PASSWORDS.items())):
        text = secret.encode()
        assert not any(text in body for body in (*files, *pages))
        lines = [line for line in proxy.log.getvalue().splitlines() if secret in line]
        assert all('"reference":' in line and secret == PASSWORDS["bob"] for line in lines)
        assert not any(secret in token for token in tokens)
    assert not any(token.encode() in body for token in upstream_tokens for body in files)


async def test_background_work_asks_as_the_client_that_began_it(
    start: Start, simple: FakeUpstream, clock: Clock
) -> None:
    """A check of a tag behind the answer, and a prefetch."""
    freshness = {"tag_ttl": "10s", "stale_while_revalidate": "1h"}
    proxy = await started(start, freshness=freshness, prefetch={"blobs": 10})
    ann = Client(proxy, "ann")
    assert await ann.see("a tag") == 200
    await until(lambda: simple.bodies(IMAGE.layers[0]) == 1)
    newer = content.image("newer")
    simple.retag(NAME, "latest", newer)
    clock.advance(20)
    assert await ann.see("a tag") == 200
    await until(lambda: simple.count("GET", "manifest", newer.digest) == 1)
    asked = [
        record for record in simple.requests if record.method == "GET" and record.status == 200
    ]
    assert all(record.headers["Authorization"].endswith("-ann") for record in asked)


async def test_work_without_a_client_survives_the_refusal(
    start: Start, simple: FakeUpstream
) -> None:
    proxy = await started(start)
    assert await Client(proxy, "ann").all() == everything(200)
    await proxy.settled()
    file = proxy.storage / "blobs" / IMAGE.layers[1].replace(":", "/")
    file.chmod(0o600)
    file.write_bytes(b"x" * len(IMAGE.blobs[IMAGE.layers[1]]))
    socket = UnixConnector(str(proxy.storage / "admin.sock"))
    async with (
        ClientSession("http://millpond", connector=socket) as operator,
        operator.post("/-/verify?repair=true") as answer,
    ):
        report = await answer.text()
        assert answer.status == 200, report
    blob = [record for record in simple.requests if record.reference == IMAGE.layers[1]]
    assert blob[-1].status == 401, report
    assert await Client(proxy, "ann").see("a large blob") == 200


async def test_absent_repositories_are_asked_for_login(start: Start, private: FakeUpstream) -> None:
    proxy = await started(start)
    assert await Client(proxy, None).see("a tag", ABSENT) == 401
    assert await Client(proxy, "ann").see("a tag", ABSENT) in (403, 404)
