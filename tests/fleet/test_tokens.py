"""All replicas use a token that one of them got, and Redis does not reveal it."""

import pytest

from proxy.fleet.store import Store
from proxy.fleet.tokens import MIN_SECONDS, TokenVault
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import Join, asked
from tests.parts.redis import Redis

IMAGE = content.image(1)
LATEST = "/v2/app/manifests/latest"
LOGIN = {"username": "alice", "password": "wonderland"}
USE, TOKEN = "https://hub repository:app:pull alice", "secret-token"


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.auth.scheme = "bearer"
    upstream.auth.users["alice"] = "wonderland"


async def test_a_token_is_kept_for_its_life(store: Store) -> None:
    vault = TokenVault(store, b"s" * 32)
    await vault.put(USE, TOKEN, 100)
    found = await vault.get(USE)
    assert found is not None
    assert found[0] == TOKEN
    assert 90 < found[1] <= 100
    await vault.forget(USE)
    assert await vault.get(USE) is None


async def test_a_token_that_is_about_to_expire_is_given_to_nobody(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = TokenVault(store, b"s" * 32)
    await vault.put("short", TOKEN, MIN_SECONDS)
    assert await vault.get("short") is None
    await vault.put(USE, TOKEN, 100)
    now = store.now()
    monkeypatch.setattr(store, "now", lambda: now + 100 - MIN_SECONDS)
    assert await vault.get(USE) is None


async def test_the_same_token_is_never_sealed_twice_in_the_same_way(
    store: Store, redis: Redis
) -> None:
    vault, sealed = TokenVault(store, b"s" * 32), set[bytes]()
    for _ in range(2):
        await vault.put(USE, TOKEN, 100)
        (key,) = await asked(redis, "KEYS", "*:token:*")
        sealed.add((await asked(redis, "GET", key))[:12])
    assert len(sealed) == 2


async def test_only_the_secret_opens_a_token(store: Store, redis: Redis) -> None:
    await TokenVault(store, b"s" * 32).put(USE, TOKEN, 100)
    (key,) = await asked(redis, "KEYS", "*:token:*")
    sealed = await asked(redis, "GET", key)
    assert TOKEN.encode() not in sealed
    assert b"app" not in key
    assert await TokenVault(store, b"t" * 32).get(USE) is None
    await asked(redis, "SET", key, sealed[:-1] + bytes([sealed[-1] ^ 1]))
    assert await TokenVault(store, b"s" * 32).get(USE) is None


async def test_a_token_is_not_moved_to_another_use(store: Store, redis: Redis) -> None:
    vault = TokenVault(store, b"s" * 32)
    await vault.put(USE, TOKEN, 100)
    (key,) = await asked(redis, "KEYS", "*:token:*")
    await vault.put("other", "another-token", 100)
    keys = await asked(redis, "KEYS", "*:token:*")
    (other,) = set(keys) - {key}
    await asked(redis, "SET", other, await asked(redis, "GET", key))
    assert await vault.get("other") is None


@pytest.mark.parametrize("login", [{}, LOGIN])
async def test_one_token_serves_the_fleet(
    join: Join, upstream: FakeUpstream, redis: Redis, login: dict[str, str]
) -> None:
    first, second = await join(hub=login), await join(hub=login)
    for replica in (first, second):
        answer = await replica.get(LATEST, Cache_Control="no-cache")
        assert answer.body == IMAGE.manifest
    assert upstream.count("HEAD", "manifest", "latest") >= 1
    assert len(upstream.token_requests) == 1
    for key in await asked(redis, "KEYS", "*"):
        assert b"wonderland" not in key


async def test_another_login_gets_its_own_token(join: Join, upstream: FakeUpstream) -> None:
    for login in ({}, LOGIN):
        replica = await join(hub=login)
        assert (await replica.get(LATEST, Cache_Control="no-cache")).status == 200
    assert len(upstream.token_requests) == 2


async def test_a_revoked_token_is_replaced_once(join: Join, upstream: FakeUpstream) -> None:
    first, second = await join(), await join()
    for replica in (first, second):
        assert (await replica.get(LATEST, Cache_Control="no-cache")).status == 200
    upstream.revoke_tokens()
    for replica in (first, second):
        assert (await replica.get(LATEST, Cache_Control="no-cache")).status == 200
    assert len(upstream.token_requests) <= 3


async def test_without_a_secret_no_token_is_shared(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    for _ in range(2):
        replica = await join(fleet={"secret_file": None})
        assert (await replica.get(LATEST, Cache_Control="no-cache")).status == 200
    assert not await asked(redis, "KEYS", "*:token:*")
    assert len(upstream.token_requests) == 2
