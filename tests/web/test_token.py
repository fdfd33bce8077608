import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import jwt
import pytest

from proxy.access import failures, limits
from proxy.web.token import MAX_FORM, MAX_SCOPES
from tests.access.people import basic, bearer, write_token, write_users
from tests.fakes.content import image
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

PULL = "repository:library/alpine:pull"
SECRET = "repository:team/secret:pull"
RULES = [
    {"allow": "pull", "images": ["docker.io/library/**"]},
    {"allow": "pull", "images": ["docker.io/team/**"], "to": ["user:ann", "group:dev"]},
]
Guarded = Callable[..., Awaitable[Proxy]]


@pytest.fixture
def guarded(start: Start, upstream: FakeUpstream, tmp_path: Path) -> Guarded:
    """Start a proxy whose user ann, and whose token robot of the group dev, may pull more."""

    async def guarded(**access: Any) -> Proxy:
        users = write_users(tmp_path / "htpasswd", ann="secret")
        return await start(access={"htpasswd_file": str(users), "rules": RULES, **access})

    return guarded


async def token(proxy: Proxy, *scopes: str, **headers: str) -> Answer:
    query = "&".join(f"scope={quote(scope)}" for scope in scopes)
    return await proxy.get(f"/-/token?service=x&{query}", **headers)


async def post(proxy: Proxy, *, headers: dict[str, str] | None = None, **form: str) -> Answer:
    async with proxy.client.post("/-/token", data=form, headers=headers) as response:
        return Answer(response.status, response.headers, await response.read())


def claims(answer: Answer) -> dict[str, Any]:
    assert answer.status == 200, answer.body
    found: dict[str, Any] = jwt.decode(
        json.loads(answer.body)["token"], options={"verify_signature": False}
    )
    return found


def granted(answer: Answer) -> list[str]:
    return [entry["name"] for entry in claims(answer)["access"]]


async def test_the_answer_has_what_the_specification_says(guarded: Guarded) -> None:
    proxy = await guarded(token_ttl="120s")
    answer = await token(proxy, PULL, Authorization=basic("ann", "secret"))
    document = json.loads(answer.body)
    assert document["token"] == document["access_token"]
    assert document["expires_in"] == 120
    issued = datetime.fromisoformat(document["issued_at"]).timestamp()
    assert abs(issued - time.time()) < 60
    assert document["scope"] == PULL
    assert "refresh_token" not in document
    assert answer.headers["Cache-Control"] == "no-store"
    body = claims(answer)
    assert (body["sub"], body["aud"], body["exp"] - body["iat"]) == ("ann", "millpond", 120)
    assert {"iss", "nbf", "jti"} <= body.keys()


async def test_without_credentials_there_is_an_anonymous_token(guarded: Guarded) -> None:
    proxy = await guarded()
    for headers in ({}, {"Authorization": "Basic Og=="}):
        answer = await token(proxy, PULL, SECRET, **headers)
        assert claims(answer)["sub"] == ""
        assert granted(answer) == ["library/alpine"]


async def test_wrong_credentials_fail_a_login_but_not_a_pull(guarded: Guarded) -> None:
    proxy = await guarded()
    wrong = basic("ann", "wrong")
    login = await token(proxy, Authorization=wrong)
    assert login.status == 401
    assert login.headers["WWW-Authenticate"].startswith("Basic ")
    assert json.loads(login.body)["errors"][0]["code"] == "UNAUTHORIZED"
    pull = await token(proxy, PULL, SECRET, Authorization=wrong)
    assert claims(pull)["sub"] == ""
    assert granted(pull) == ["library/alpine"]
    assert (await token(proxy, Authorization=basic("ann", "secret"))).status == 200


async def test_without_anonymous_access_wrong_credentials_always_fail(guarded: Guarded) -> None:
    proxy = await guarded(anonymous=False)
    assert (await token(proxy, PULL)).status == 401
    assert (await token(proxy)).status == 401
    assert (await token(proxy, PULL, Authorization=basic("ann", "wrong"))).status == 401
    assert (await token(proxy, PULL, Authorization=basic("ann", "secret"))).status == 200


async def test_less_than_asked_is_no_error(guarded: Guarded) -> None:
    proxy = await guarded()
    scopes = ("repository:UPPER:pull", "junk", "repository:team/secret:push", "a:b:c", "::")
    answer = await token(proxy, *scopes, Authorization=basic("ann", "secret"))
    assert claims(answer)["access"] == []
    answer = await token(proxy, f"{PULL},push {SECRET}", Authorization=basic("ann", "secret"))
    assert granted(answer) == ["library/alpine", "team/secret"]
    assert all(entry["actions"] == ["pull"] for entry in claims(answer)["access"])


async def test_the_realm_says_which_upstream_is_meant(guarded: Guarded) -> None:
    proxy = await guarded(rules=[{"allow": "pull", "images": ["docker.io/**"]}])
    for ns, names in (("docker.io", ["library/alpine"]), ("other.example", []), ("%00", [])):
        answer = await proxy.get(f"/-/token?ns={ns}&scope={PULL}")
        assert granted(answer) == names


async def test_the_post_of_oauth_2(guarded: Guarded, tmp_path: Path) -> None:
    secret = write_token(tmp_path / "tokens", "robot", "dev")
    proxy = await guarded(tokens_file=str(tmp_path / "tokens"))
    asked = {"service": "x", "client_id": "tests", "scope": f"{PULL} {SECRET}"}
    good = {"grant_type": "password", "username": "ann", "password": "secret"}
    answer = await post(proxy, **asked, **good)
    assert claims(answer)["sub"] == "ann"
    assert json.loads(answer.body)["scope"] == f"{PULL} {SECRET}"
    answer = await post(proxy, **asked, grant_type="refresh_token", refresh_token=secret)
    assert claims(answer)["sub"] == "robot"
    assert granted(answer) == ["library/alpine", "team/secret"]
    for wrong in ({**good, "password": "wrong"}, {"grant_type": "refresh_token"}):
        assert (await post(proxy, service="x", **wrong)).status == 401
    assert claims(await post(proxy, **asked, **good | {"password": "x"}))["sub"] == ""
    assert claims(await post(proxy, **asked, grant_type="password"))["sub"] == ""
    for kind in ("authorization_code", ""):
        refused = await post(proxy, **asked, grant_type=kind)
        assert (refused.status, json.loads(refused.body)["error"]) == (400, "invalid_request")


async def test_a_token_of_ours_gets_no_other_token(guarded: Guarded) -> None:
    proxy = await guarded()
    ours = json.loads((await token(proxy, SECRET, Authorization=basic("ann", "secret"))).body)
    sent, form = ours["token"], {"grant_type": "refresh_token", "refresh_token": ours["token"]}
    assert (await token(proxy, Authorization=bearer(sent))).status == 401
    assert (await post(proxy, service="x", **form)).status == 401
    assert claims(await token(proxy, SECRET, Authorization=bearer(sent)))["sub"] == ""
    assert granted(await post(proxy, scope=SECRET, **form)) == []


async def test_a_node_may_bring_its_own_login_beside_that_of_a_pod(guarded: Guarded) -> None:
    proxy = await guarded()
    form = {"grant_type": "password", "username": "hub", "password": "other", "scope": SECRET}
    answer = await post(proxy, headers={"Authorization": basic("ann", "secret")}, **form)
    assert claims(answer)["sub"] == "ann"
    assert granted(answer) == ["team/secret"]


async def test_requests_are_bounded(guarded: Guarded) -> None:
    proxy = await guarded()
    many = " ".join(f"repository:r{number}:pull" for number in range(MAX_SCOPES + 1))
    assert (await token(proxy, many)).status == 400
    assert (await post(proxy, grant_type="password", password="x" * MAX_FORM)).status == 400
    fields = urlencode([("scope", "x")] * 101)
    kind = {"Content-Type": "application/x-www-form-urlencoded"}
    for body, headers in ((fields, kind), ("%ff", kind), ("\xff", kind), ("{}", {})):
        data = body.encode("latin-1") + (b"&x=%ff" if body == "%ff" else b"")
        async with proxy.client.post("/-/token", data=data, headers=headers) as response:
            assert response.status == 400, body
    assert (await proxy.ask("DELETE", "/-/token")).status == 405


DEPARTMENTS = [f"department-{number}-of-the-company" for number in range(900)]


async def test_a_login_with_many_groups_gets_a_token_that_fits(
    guarded: Guarded, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.add("team/secret", image(1), tags=["1"])
    robot = basic("x", write_token(tmp_path / "tokens.yaml", "robot", "dev", *DEPARTMENTS))
    proxy = await guarded(tokens_file=str(tmp_path / "tokens.yaml"))
    answer = await token(proxy, SECRET, Authorization=robot)
    assert claims(answer)["groups"] == ["dev"]
    ours = bearer(json.loads(answer.body)["token"])
    assert (await proxy.get("/v2/team/secret/manifests/1", Authorization=ours)).status == 200


async def test_groups_that_do_not_fit_into_a_token_are_an_error(
    guarded: Guarded, tmp_path: Path
) -> None:
    robot = basic("x", write_token(tmp_path / "tokens.yaml", "robot", *DEPARTMENTS))
    rules = [{"allow": "pull", "to": ["group:*"]}]
    proxy = await guarded(tokens_file=str(tmp_path / "tokens.yaml"), rules=rules)
    refused = await token(proxy, SECRET, Authorization=robot)
    assert refused.status == 403
    assert b"groups" in refused.body


async def test_scopes_that_do_not_fit_into_a_token_are_left_out(guarded: Guarded) -> None:
    proxy = await guarded()
    scopes = [f"repository:library/{'x' * 200}{number}:pull" for number in range(MAX_SCOPES)]
    answer = await post(proxy, grant_type="password", scope=" ".join(scopes))
    names = granted(answer)
    assert 0 < len(names) < MAX_SCOPES
    assert [f"repository:{name}:pull" for name in names] == scopes[: len(names)]
    assert len(json.loads(answer.body)["token"]) < 8000


async def test_a_form_that_cannot_be_unpacked_is_the_clients_fault(guarded: Guarded) -> None:
    proxy = await guarded()
    headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Encoding": "gzip"}
    async with proxy.client.post("/-/token", data=b"junk", headers=headers) as response:
        assert response.status == 400
    assert "unexpectedly" not in proxy.log.getvalue()


async def test_repeated_failures_are_slowed_down_and_then_refused(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FIRST_DELAY", 0.001)
    monkeypatch.setattr(failures, "LONGEST_DELAY", 0.001)
    proxy = await guarded()
    assert (await token(proxy, Authorization=basic("ann", "secret"))).status == 200
    wrong = basic("ann", "wrong")
    statuses = [(await token(proxy, Authorization=wrong)).status for _ in range(15)]
    assert statuses == [401] * 10 + [429] * 5
    refused = await token(proxy, Authorization=wrong)
    assert int(refused.headers["Retry-After"]) > 0
    assert json.loads(refused.body)["errors"][0]["code"] == "TOOMANYREQUESTS"
    # The login that was right before goes on, and so do anonymous pulls.
    assert (await token(proxy, Authorization=basic("ann", "secret"))).status == 200
    assert granted(await token(proxy, PULL, Authorization=wrong)) == ["library/alpine"]
    assert (await token(proxy, Authorization=basic("bob", "wrong"))).status == 401


async def test_tokens_count_as_requests_and_wait_for_their_turn(guarded: Guarded) -> None:
    proxy = await guarded(limits={"requests_per_second": 10})
    began = time.monotonic()
    answers = await asyncio.gather(*(token(proxy, PULL) for _ in range(30)))
    assert {answer.status for answer in answers} == {200}
    assert time.monotonic() - began >= 0.9, "20 at once, 10 in a second"


async def test_a_flood_of_wrong_and_anonymous_logins_delays_no_user_behind_the_same_address(
    guarded: Guarded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "MAX_WAIT", 0.0)
    proxy = await guarded(limits={"requests_per_second": 0.01})
    assert (await token(proxy, PULL)).status == 200
    refused = await token(proxy, PULL)
    assert (refused.status, json.loads(refused.body)["errors"][0]["code"]) == (
        429,
        "TOOMANYREQUESTS",
    )
    assert int(refused.headers["Retry-After"]) > 0
    wrong = await token(proxy, PULL, Authorization=basic("ann", "wrong"))
    assert wrong.status == 429, "it is anonymous"
    assert (await token(proxy, Authorization="Bearer wrong")).status == 429
    right = {"Authorization": basic("ann", "secret")}
    assert (await token(proxy, PULL, **right)).status == 200
    assert (await token(proxy, PULL, **right)).status == 429, "ann has a limit too"


async def test_without_access_there_is_no_token_endpoint(start: Start) -> None:
    proxy = await start()
    assert (await proxy.get("/-/token")).status == 404


async def test_a_token_pulls_what_it_was_made_for(guarded: Guarded, upstream: FakeUpstream) -> None:
    upstream.add("team/secret", image())
    proxy = await guarded()
    answer = await token(proxy, SECRET, Authorization=basic("ann", "secret"))
    good = bearer(json.loads(answer.body)["token"])
    path = "/v2/team/secret/manifests/latest"
    assert (await proxy.get(path)).status == 401
    for _ in range(4):
        assert (await proxy.get(path, Authorization=good)).status == 200
    other = await token(proxy, PULL, Authorization=basic("ann", "secret"))
    narrow = bearer(json.loads(other.body)["token"])
    assert (await proxy.get(path, Authorization=narrow)).status == 401
    assert (await proxy.get("/v2/", Authorization=good)).status == 200
    assert (await proxy.get("/v2/")).status == 401
