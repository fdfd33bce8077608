"""Deliveries are remembered for a day, and only so many."""

from proxy.services.hooks.replays import MAX_IDS, REMEMBERED_SECONDS, Replays
from tests.fakes.clock import Clock


def test_a_delivery_is_remembered_for_a_day(clock: Clock) -> None:
    replays = Replays(clock)
    assert not replays.has("one")
    replays.add(["one", ""])
    clock.now += REMEMBERED_SECONDS - 1
    assert replays.has("one")
    assert not replays.has("")
    clock.now += 2
    assert not replays.has("one")


def test_the_oldest_are_forgotten_first(clock: Clock) -> None:
    replays = Replays(clock)
    replays.add(map(str, range(MAX_IDS)))
    replays.add(["0"])
    replays.add(["new", "x" * 1_000_000])
    assert len(replays) == MAX_IDS
    assert replays.has("0")
    assert not replays.has("1")
    assert not replays.has("2")
    assert replays.has("3")


def test_an_id_may_be_any_text_that_json_can_express(clock: Clock) -> None:
    replays = Replays(clock)
    for number in ("\ud800", "\udcff"):  # of JSON, and of a header
        assert not replays.has(number)
        replays.add([number])
        assert replays.has(number)
