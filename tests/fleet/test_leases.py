import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from proxy.core.names import Digest, sha256
from proxy.fleet import leases as lease_module
from proxy.fleet.leases import HOLDERS, HOLDERS_SECONDS, Lease, LeaseHolder, Leases, Progress
from proxy.fleet.store import Argument, Store
from proxy.runtime.supervisor import running_beside
from tests.fleet.conftest import connected
from tests.fleet.sharing import holds
from tests.parts.redis import Redis

A, B = "http://10.0.0.1:5000", "http://10.0.0.2:5000"
HUB, DIGEST = "docker.io", sha256(b"x")


LONG, SHORT = 1000.0, 0.2
"""Seconds: no lease ends by itself in a test, but for those that are made short."""


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", LONG)
    monkeypatch.setattr(lease_module, "RENEW_SECONDS", 0.02)


@pytest.fixture
def a(store: Store) -> Leases:
    return Leases(store, A)


@pytest.fixture
def b(store: Store) -> Leases:
    return Leases(store, B)


async def freed(leases: Leases, digest: Digest = DIGEST) -> Lease:
    """Return the lease once it can be had."""
    async with asyncio.timeout(30):
        while not isinstance(taken := await leases.acquire(HUB, digest), Lease):
            await asyncio.sleep(0.02)
    return taken


@asynccontextmanager
async def kept(leases: Leases, progress: Progress | None) -> AsyncIterator[list[Progress | None]]:
    """Keep leases; the progress may be changed in the list."""
    now = [progress]
    async with running_beside(leases.renew_forever(lambda *_: now[0]), "keep"):
        yield now


async def shorten(store: Store) -> None:
    """Let half of the time of a lease pass."""
    await store.run("PEXPIRE", store.key("lease", HUB, DIGEST), int(LONG * 500))


async def renewed(store: Store) -> None:
    """Return once a lease that was shortened is as long as before."""

    async def is_renewed() -> bool:
        return bool(await store.run("PTTL", store.key("lease", HUB, DIGEST)) > LONG * 500)

    await holds(is_renewed)


async def test_one_replica_gets_the_lease_and_the_others_its_address(a: Leases, b: Leases) -> None:
    assert isinstance(await a.acquire(HUB, DIGEST), Lease)
    held = await b.acquire(HUB, DIGEST)
    assert isinstance(held, LeaseHolder)
    assert held.address == A
    assert await b.holder(HUB, DIGEST) == held
    assert await a.holder(HUB, DIGEST) is None


async def test_of_many_at_once_one_gets_it(store: Store) -> None:
    replicas = [Leases(store, f"http://10.0.0.{i}:5000") for i in range(20)]
    taken = await asyncio.gather(*(one.acquire(HUB, DIGEST) for one in replicas))
    assert sum(isinstance(one, Lease) for one in taken) == 1


async def test_upstreams_and_digests_have_leases_apart(a: Leases, b: Leases) -> None:
    assert isinstance(await a.acquire(HUB, DIGEST), Lease)
    assert isinstance(await b.acquire("quay.io", DIGEST), Lease)
    assert isinstance(await b.acquire(HUB, sha256(b"y")), Lease)


async def test_a_lease_that_ends_is_free_at_once_and_names_who_stored_it(
    a: Leases, b: Leases
) -> None:
    await a.acquire(HUB, DIGEST)
    a.stored(DIGEST)
    await a.close()
    lease = await b.acquire(HUB, DIGEST)
    assert isinstance(lease, Lease)
    assert lease.holders == (A,)
    assert b.holders(HUB, DIGEST) == (A,)
    await b.forget_holder(DIGEST, A)
    assert (await freed(b)).holders == ()


async def test_only_the_owner_releases_a_lease(a: Leases, b: Leases) -> None:
    await a.acquire(HUB, DIGEST)
    b._held[HUB, DIGEST] = Lease(f"{B} stale", (), 0.0)
    await b.close()
    assert isinstance(await b.acquire(HUB, DIGEST), LeaseHolder)


async def test_no_bytes_no_lease(a: Leases, b: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", SHORT)
    await a.acquire(HUB, DIGEST, seconds=1000)
    async with kept(a, Progress(1000, is_complete=False)):
        await freed(b)


async def test_a_lease_lasts_while_bytes_flow(a: Leases, b: Leases, store: Store) -> None:
    await a.acquire(HUB, DIGEST, seconds=0)
    async with kept(a, Progress(1, is_complete=False)) as progress:
        for written in range(2, 6):
            await shorten(store)
            progress[0] = Progress(written, is_complete=False)
            await renewed(store)
            assert isinstance(await b.acquire(HUB, DIGEST), LeaseHolder)


@pytest.mark.parametrize("progress", [None, Progress(5, is_complete=True)])
async def test_a_lease_lasts_before_the_first_byte_and_after_the_last(
    a: Leases, b: Leases, store: Store, progress: Progress | None
) -> None:
    await a.acquire(HUB, DIGEST)
    async with kept(a, progress):
        for _ in range(4):
            await shorten(store)
            await renewed(store)
            assert isinstance(await b.acquire(HUB, DIGEST), LeaseHolder)


async def test_no_renewal_waits_for_another(a: Leases, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a slow Redis, the leases at the end would expire."""
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", 1000)
    digests = [sha256(bytes([number])) for number in range(5)]
    for digest in digests:
        await a.acquire(HUB, digest)
    all_wait, have_ended = asyncio.Barrier(len(digests)), asyncio.Event()

    async def slow(_: Sequence[str], __: Sequence[Argument]) -> object:
        await all_wait.wait()
        have_ended.set()
        return True

    monkeypatch.setattr(a, "_renew", slow)
    async with kept(a, None), asyncio.timeout(20):
        await have_ended.wait()


async def test_a_lease_that_redis_forgot_comes_back(a: Leases, b: Leases, store: Store) -> None:
    await a.acquire(HUB, DIGEST)
    async with kept(a, None):
        await store.run("FLUSHALL")
        async with asyncio.timeout(30):
            while await b.holder(HUB, DIGEST) is None:
                await asyncio.sleep(0.01)


async def test_a_lease_that_another_replica_took_over_is_not_renewed(
    a: Leases, b: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", SHORT)
    await a.acquire(HUB, DIGEST)
    monkeypatch.setattr(lease_module, "LEASE_SECONDS", LONG)
    await freed(b)
    async with kept(b, None), kept(a, None), asyncio.timeout(30):
        while a.owns(HUB, DIGEST):
            await asyncio.sleep(0.01)
        held = await a.holder(HUB, DIGEST)
    assert held is not None
    assert held.address == B


async def test_a_renewal_that_comes_after_the_end_leaves_no_lease(
    a: Leases, b: Leases, monkeypatch: pytest.MonkeyPatch
) -> None:
    await a.acquire(HUB, DIGEST)
    renew, is_late = a._renew, asyncio.Event()

    async def late(keys: Sequence[str], arguments: Sequence[Argument]) -> object:
        a.release(HUB, DIGEST)
        await asyncio.gather(*a._ending)
        answer: object = await renew(keys, arguments)
        is_late.set()
        return answer

    monkeypatch.setattr(a, "_renew", late)
    async with kept(a, None), asyncio.timeout(30):
        await is_late.wait()
        await freed(b)


async def test_a_replica_that_ends_releases_its_leases(a: Leases, b: Leases) -> None:
    await a.acquire(HUB, DIGEST)
    await a.close()
    assert isinstance(await b.acquire(HUB, DIGEST), Lease)


async def test_few_holders_are_remembered_and_not_for_ever(store: Store) -> None:
    for number in range(HOLDERS + 3):
        one = Leases(store, f"http://10.0.1.{number}:5000")
        one.stored(DIGEST)
        await one.close()
    key = store.key("holders", DIGEST)
    assert await store.run("SCARD", key) == HOLDERS
    assert 0 < await store.run("TTL", key) <= HOLDERS_SECONDS


async def test_a_lease_of_an_earlier_life_is_replaced(a: Leases, store: Store) -> None:
    await a.acquire(HUB, DIGEST)
    assert isinstance(await Leases(store, A).acquire(HUB, DIGEST), Lease)
    longer = Leases(store, A + "1")
    assert isinstance(await longer.acquire(HUB, DIGEST), LeaseHolder)


async def test_without_redis_there_is_no_lease(redis: Redis) -> None:
    async with connected(redis.url) as store:
        redis.kill()
        leases = Leases(store, A)
        assert await leases.acquire(HUB, DIGEST) is None
        assert await leases.holder(HUB, DIGEST) is None
        leases.stored(DIGEST)
        await leases.close()
