import json
import re
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from tests.fakes import content, faults
from tests.fakes.auth import Dialect
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream

PUBLIC, PRIVATE, ABSENT = "library/alpine", "team/app", "library/absent"
ALICE = aiohttp.encode_basic_auth("alice", "secret")


@pytest.fixture
async def upstream(clock: Clock) -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(clock) as running:
        running.auth.scheme = "bearer"
        running.auth.users = {"alice": "secret", "bob": "hidden"}
        running.auth.private = {PRIVATE: {"alice"}}
        running.add(PUBLIC, content.image())
        running.add(PRIVATE, content.image(1))
        yield running


class Asker:
    """Fetches `latest` of a repository, and tokens for it, as a client would."""

    def __init__(self, session: aiohttp.ClientSession, repository: str = PUBLIC) -> None:
        self.session = session
        self.repository = repository

    async def get(self, authorization: str | None = None) -> tuple[int, dict[str, str]]:
        """The status and the fields of the challenge, if there is one."""
        headers = {} if authorization is None else {"Authorization": authorization}
        path = f"/v2/{self.repository}/manifests/latest"
        async with self.session.get(path, headers=headers) as response:
            said = response.headers.get("WWW-Authenticate", "")
            return response.status, dict(re.findall(r'(\w+)="([^"]*)"', said))

    async def token(self, auth: str | None = None) -> tuple[int, dict[str, Any]]:
        """The status and the body of the token server's answer."""
        _, challenge = await self.get()
        query = {name: value for name, value in challenge.items() if name != "realm"}
        headers = {} if auth is None else {"Authorization": auth}
        async with self.session.get(challenge["realm"], params=query, headers=headers) as response:
            return response.status, json.loads(await response.read())


async def test_bearer(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    asker = Asker(session)
    status, challenge = await asker.get()
    assert status == 401
    assert challenge == {
        "realm": f"{upstream.token_url}/token",
        "service": "fake.registry",
        "scope": f"repository:{PUBLIC}:pull",
    }
    status, document = await asker.token()
    assert (status, document["expires_in"]) == (200, 300)
    assert document["token"] == document["access_token"]
    assert (await asker.get(f"Bearer {document['token']}"))[0] == 200
    assert upstream.token_requests[0].query["scope"] == f"repository:{PUBLIC}:pull"
    assert upstream.count(kind="token") == 0


async def test_expiry_and_revocation(
    upstream: FakeUpstream, session: aiohttp.ClientSession, clock: Clock
) -> None:
    asker = Asker(session)
    token = (await asker.token())[1]["token"]
    clock.advance(300)
    status, challenge = await asker.get(f"Bearer {token}")
    assert (status, challenge["error"]) == (401, "invalid_token")
    token = (await asker.token())[1]["token"]
    upstream.revoke_tokens()
    assert (await asker.get(f"Bearer {token}"))[0] == 401


@pytest.mark.parametrize("fields", [("token",), ("access_token",), ()])
async def test_token_fields(
    upstream: FakeUpstream, session: aiohttp.ClientSession, clock: Clock, fields: tuple[str, ...]
) -> None:
    upstream.auth.fields = fields
    upstream.auth.expires_in = None
    upstream.auth.lifetime = 10
    _, document = await Asker(session).token()
    assert document.keys() == set(fields)
    for token in document.values():
        assert (await Asker(session).get(f"Bearer {token}"))[0] == 200
        clock.advance(10)
        assert (await Asker(session).get(f"Bearer {token}"))[0] == 401


@pytest.mark.parametrize(
    ("user", "token_status", "status"),
    [
        (None, 200, 401),
        (ALICE, 200, 200),
        (aiohttp.encode_basic_auth("bob", "hidden"), 200, 401),
        (aiohttp.encode_basic_auth("alice", "wrong"), 401, None),
    ],
)
async def test_private(
    session: aiohttp.ClientSession,
    user: str | None,
    token_status: int,
    status: int | None,
) -> None:
    asker = Asker(session, PRIVATE)
    answered, document = await asker.token(user)
    assert answered == token_status
    if status is not None:
        got, challenge = await asker.get(f"Bearer {document['token']}")
        assert got == status
        assert challenge.get("error") == (None if status == 200 else "insufficient_scope")


async def test_anonymous_may_be_refused(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.auth.anonymous = False
    assert (await Asker(session).token())[0] == 401
    assert (await Asker(session).token(ALICE))[0] == 200


@pytest.mark.parametrize(
    "form",
    [
        {"grant_type": "refresh_token", "refresh_token": "identity"},
        {"grant_type": "password", "username": "alice", "password": "secret"},
    ],
)
async def test_posted_credentials(
    upstream: FakeUpstream, session: aiohttp.ClientSession, form: dict[str, str]
) -> None:
    upstream.auth.identity_tokens = {"identity": "alice"}
    form |= {"scope": f"repository:{PRIVATE}:pull", "service": "fake.registry"}
    async with session.post(f"{upstream.token_url}/token", data=form) as response:
        token = (await response.json())["access_token"]
    assert (await Asker(session, PRIVATE).get(f"Bearer {token}"))[0] == 200
    assert upstream.token_requests[0].form["grant_type"] == form["grant_type"]
    form |= {"refresh_token": "bad", "password": "bad"}
    async with session.post(f"{upstream.token_url}/token", data=form) as response:
        assert response.status == 401


async def test_basic(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.auth.scheme = "basic"
    asker = Asker(session, PRIVATE)
    assert await asker.get() == (401, {"realm": "fake"})
    assert (await asker.get(ALICE))[0] == 200
    assert (await asker.get("Basic !"))[0] == 401
    assert (await asker.get(aiohttp.encode_basic_auth("bob", "hidden")))[0] == 403


async def test_realm_elsewhere(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.auth.realm = "registry"
    assert (await Asker(session).token())[0] == 200
    assert (upstream.token_requests[0].server, upstream.count()) == ("registry", 1)
    upstream.auth.realm = "https://evil.test/token"
    assert (await Asker(session).get())[1]["realm"] == "https://evil.test/token"


async def test_where_the_challenge_is(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.auth.challenge = "ping"
    assert await Asker(session).get() == (401, {})
    async with session.get("/v2/") as response:
        assert "WWW-Authenticate" in response.headers
    upstream.auth.challenge = "never"
    async with session.get("/v2/") as response:
        assert (response.status, "WWW-Authenticate" in response.headers) == (401, False)


@pytest.mark.parametrize(
    ("dialect", "token_status", "status"),
    [("distribution", 200, 404), ("hub", 200, 401), ("ghcr", 403, None), ("gitlab", 403, None)],
)
async def test_unknown_repository(
    upstream: FakeUpstream,
    session: aiohttp.ClientSession,
    dialect: Dialect,
    token_status: int,
    status: int | None,
) -> None:
    upstream.auth.dialect = dialect
    asker = Asker(session, ABSENT)
    answered, document = await asker.token()
    assert answered == token_status
    if status is not None:
        assert (await asker.get(f"Bearer {document['token']}"))[0] == status


async def test_ghcr_refuses_bad_tokens_without_challenge(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    upstream.auth.dialect = "ghcr"
    assert await Asker(session).get("Bearer stale") == (403, {})
    assert (await Asker(session).token())[0] == 200


async def test_nvcr_names_another_realm_after_expiry(
    upstream: FakeUpstream, session: aiohttp.ClientSession, clock: Clock
) -> None:
    upstream.auth.dialect = "nvcr"
    _, challenge = await Asker(session).get()
    assert challenge.keys() == {"realm", "scope"}
    _, document = await Asker(session).token()
    clock.advance(600)
    _, challenge = await Asker(session).get(f"Bearer {document['token']}")
    assert challenge["error"] == "invalid_token"
    assert challenge["service"] == "registry"
    async with session.get(challenge["realm"]) as response:
        assert response.status == 401
    assert upstream.token_requests[-1].path == "/other/token"


@pytest.mark.parametrize("status", [401, 403, 429, 500])
async def test_token_server_fails(
    upstream: FakeUpstream, session: aiohttp.ClientSession, status: int
) -> None:
    upstream.fail(status, kind="token", times=1)
    assert (await Asker(session).token())[0] == status
    assert (await Asker(session).token())[0] == 200


async def test_token_server_is_slow(upstream: FakeUpstream, session: aiohttp.ClientSession) -> None:
    upstream.fault(faults.delay(5), kind="token")
    _, challenge = await Asker(session).get()
    with pytest.raises(TimeoutError):
        await session.get(challenge["realm"], timeout=aiohttp.ClientTimeout(total=0.05))


async def test_rules_pass_over_challenges(
    upstream: FakeUpstream, session: aiohttp.ClientSession
) -> None:
    rule = upstream.fail(503, kind="manifest")
    assert (await Asker(session).get())[0] == 401
    assert rule.used == 0
    upstream.fail(502, challenges=True)
    assert (await Asker(session).get())[0] == 502
