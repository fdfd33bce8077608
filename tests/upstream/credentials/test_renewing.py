"""Renewal with a clock that the test moves."""

import asyncio
import math
from collections.abc import Callable

import pytest

from proxy.core.errors import CredentialsRejected, UpstreamUnavailable
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.renewing import (
    FAILURE_PAUSE,
    LONGEST_LIFE,
    MIN_LIFE,
    RETRY_PAUSE,
    UNKNOWN_LIFE,
    Issued,
    RenewingCache,
    RenewingCredentials,
)
from tests.fakes.clock import Clock


class Source:
    """Numbers from 1 on, each with a life; it fails while `error` is set."""

    def __init__(self, life: float | None = 1000.0) -> None:
        self.life = life
        self.calls = 0
        self.error: Exception | None = None
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> Issued[int]:
        self.calls += 1
        number = self.calls
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return Issued(number, self.life)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0)


async def settled(renewing: RenewingCache[int]) -> None:
    """Wait until no renewal runs."""
    await until(lambda: len(renewing._flights) == 0)


async def test_all_that_wait_share_one_request(clock: Clock) -> None:
    source, renewing = Source(), RenewingCache[int]("test", clock)
    source.gate.clear()
    waiting = [asyncio.create_task(renewing.get("", source)) for _ in range(5)]
    await until(lambda: source.calls == 1)
    source.gate.set()
    assert await asyncio.gather(*waiting) == [1] * 5
    assert source.calls == 1


async def test_a_value_is_renewed_in_the_background_before_it_expires(clock: Clock) -> None:
    source, renewing = Source(life=1000), RenewingCache[int]("test", clock)
    assert await renewing.get("", source) == 1
    clock.advance(749)
    assert await renewing.get("", source) == 1
    assert source.calls == 1, "three quarters of the life have not passed"
    clock.advance(101)
    assert await renewing.get("", source) == 1, "no request waits for the renewal"
    await settled(renewing)
    assert await renewing.get("", source) == 2
    assert renewing.expires_in == 1000


async def test_the_time_of_renewal_varies(clock: Clock) -> None:
    renewing = RenewingCache[int]("test", clock)
    for key in range(50):
        await renewing.get(key, Source(life=1000))
    times = {held.renew_at - clock() for held in renewing._held.values()}
    assert len(times) > 40
    assert all(750 <= time <= 850 for time in times)


async def test_a_value_is_used_until_it_expires_while_renewal_fails(clock: Clock) -> None:
    source, renewing = Source(life=1000), RenewingCache[int]("test", clock)
    await renewing.get("", source)
    source.error = UpstreamUnavailable("the cloud is away")
    clock.advance(900)
    assert await renewing.get("", source) == 1
    await settled(renewing)
    assert await renewing.get("", source) == 1
    assert source.calls == 2, "the next attempt waits"
    clock.advance(RETRY_PAUSE + 1)
    assert await renewing.get("", source) == 1
    await settled(renewing)
    assert source.calls == 3
    clock.advance(100)
    with pytest.raises(UpstreamUnavailable):
        await renewing.get("", source)
    source.error = None
    clock.advance(FAILURE_PAUSE)
    assert await renewing.get("", source) == 5


async def test_a_failure_holds_for_a_moment(clock: Clock) -> None:
    source, renewing = Source(), RenewingCache[int]("test", clock)
    source.error = CredentialsRejected("no")
    for _ in range(3):
        with pytest.raises(CredentialsRejected, match="no"):
            await renewing.get("", source)
    assert source.calls == 1
    source.error = None
    clock.advance(FAILURE_PAUSE)
    assert await renewing.get("", source) == 2


async def test_a_refused_value_is_renewed_once(clock: Clock) -> None:
    source, renewing = Source(), RenewingCache[int]("test", clock)
    assert await renewing.get("", source) == 1
    assert await renewing.renew("", source, 1) == 1, "it has only just been issued"
    clock.advance(MIN_LIFE)
    source.gate.clear()
    waiting = [asyncio.create_task(renewing.renew("", source, 1)) for _ in range(3)]
    await until(lambda: source.calls == 2)
    source.gate.set()
    assert await asyncio.gather(*waiting) == [2, 2, 2]
    assert await renewing.renew("", source, 1) == 2, "another request has renewed it"
    assert await renewing.renew("", source, 2) == 2
    assert source.calls == 2


async def test_a_refused_value_stays_if_there_is_no_new_one(clock: Clock) -> None:
    source, renewing = Source(life=1000), RenewingCache[int]("test", clock)
    await renewing.get("", source)
    clock.advance(MIN_LIFE)
    source.error = CredentialsRejected("no")
    assert await renewing.renew("", source, 1) == 1
    assert await renewing.renew("", source, 1) == 1
    assert source.calls == 2


@pytest.mark.parametrize(
    ("life", "expected"),
    [
        (None, UNKNOWN_LIFE),
        (-3e8, UNKNOWN_LIFE),
        (0.0, UNKNOWN_LIFE),
        (math.nan, UNKNOWN_LIFE),
        (0.5, MIN_LIFE),
        (3600.0, 3600.0),
        (1e12, LONGEST_LIFE),
        (math.inf, LONGEST_LIFE),
    ],
)
async def test_absurd_lives_are_clamped(clock: Clock, life: float | None, expected: float) -> None:
    renewing = RenewingCache[int]("test", clock)
    await renewing.get("", Source(life))
    assert renewing.expires_in == expected


async def test_each_key_has_a_value(clock: Clock) -> None:
    renewing = RenewingCache[int]("test", clock)
    assert renewing.expires_in is None
    long, short = Source(life=5000), Source(life=500)
    await renewing.get("a", long)
    await renewing.get("b", short)
    assert (long.calls, short.calls) == (1, 1)
    assert renewing.expires_in == 500, "the first to expire"


async def test_close_cancels_what_runs(clock: Clock) -> None:
    source, renewing = Source(), RenewingCache[int]("test", clock)
    source.gate.clear()
    waiting = asyncio.create_task(renewing.get("", source))
    await until(lambda: source.calls == 1)
    await renewing.close()
    with pytest.raises(asyncio.CancelledError):
        await waiting


async def test_credentials_for_a_whole_registry(clock: Clock) -> None:
    issued = iter([Credential("a", "one"), Credential("a", "two")])

    async def fetch() -> Issued[Credential | None]:
        return Issued(next(issued), 600)

    credentials = RenewingCredentials("test", fetch, clock)
    first = await credentials.get("app")
    assert first == await credentials.get("other") == Credential("a", "one")
    assert credentials.expires_in == 600
    clock.advance(MIN_LIFE)
    assert await credentials.renew("app", first) == Credential("a", "two")
    await credentials.close()
