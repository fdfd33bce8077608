"""The last uses by one machine."""

import pytest

from proxy.core.names import sha256
from proxy.storage.bucket import recency
from proxy.storage.bucket.recency import LocalRecency
from tests.fakes.clock import Clock

A, B, C = (sha256(name) for name in (b"a", b"b", b"c"))


async def test_uses_survive_a_restart(clock: Clock) -> None:
    first = LocalRecency(clock)
    first.touch(A)
    clock.advance(5)
    first.touch(B)
    second = LocalRecency(clock)
    second.load([list(row) for row in first.saved()])
    assert await second.last_used([A, B, C]) == {A: clock() - 5, B: clock()}


async def test_the_oldest_uses_are_forgotten(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recency, "MAX_USES", 2)
    it = LocalRecency(clock)
    for digest in (A, B, A, C):
        it.touch(digest)
    assert {*await it.last_used([A, B, C])} == {A, C}


async def test_what_cannot_be_read_is_left_out(clock: Clock) -> None:
    it = LocalRecency(clock)
    it.load([[A, 1], ["no digest", 1], [B, "soon"], [B], None, 7, {"a": 1}])
    assert await it.last_used([A, B]) == {A: 1.0}
    it.load("nothing")


async def test_one_machine_may_always_evict(clock: Clock) -> None:
    async with LocalRecency(clock).lease() as is_ours:
        assert is_ours
