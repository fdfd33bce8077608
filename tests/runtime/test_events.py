"""Events reach all subscribers in order; a slow one loses the oldest and learns how many."""

import asyncio

from proxy.runtime.events import NULL_EMITTER, RECENT, EventKind, Events
from tests.running import until


async def test_subscribers_get_the_kinds_they_want_in_order() -> None:
    events = Events(clock=lambda: 5.0)
    with events.subscribed() as everything, events.subscribed([EventKind.EVICTED]) as evicted:
        events.emit(EventKind.CACHED, "sha256:a", bytes=3)
        events.emit(EventKind.EVICTED, "sha256:b")
        first, second = await everything.next(), await everything.next()
        assert (first.kind, first.subject, first.data) == ("cached", "sha256:a", {"bytes": 3})
        assert (second.serial, second.time) == (first.serial + 1, 5.0)
        assert await evicted.next() == second


async def test_a_subscriber_waits_for_the_next_event() -> None:
    events = Events()
    with events.subscribed() as subscription:
        waiting = asyncio.create_task(subscription.next())
        await asyncio.sleep(0)
        assert not waiting.done()
        events.emit(EventKind.UPSTREAM_DOWN, "docker.io")
        await until(waiting.done)
        assert (await waiting).subject == "docker.io"


async def test_a_slow_subscriber_loses_the_oldest_and_learns_how_many() -> None:
    events = Events()
    with events.subscribed(queued=2) as slow:
        for number in range(5):
            events.emit(EventKind.CACHED, str(number))
        assert [(await slow.next()).subject, (await slow.next()).subject] == ["3", "4"]
        assert slow.dropped == 3


async def test_after_the_end_of_its_context_nothing_is_delivered() -> None:
    events = Events()
    with events.subscribed([EventKind.PULL]):
        assert events.wanted(EventKind.PULL)
        assert not events.wanted(EventKind.DENIED)
    assert not events.wanted(EventKind.PULL)
    events.emit(EventKind.PULL, "library/app:1")


def test_recent_events_are_bounded_and_have_no_pulls() -> None:
    events = Events()
    events.emit(EventKind.TAG_MOVED, "library/app:1")
    events.emit(EventKind.PULL, "library/app:1")
    [moved] = events.recent()
    assert moved.kind is EventKind.TAG_MOVED
    assert events.recent([EventKind.DENIED]) == events.recent(after=moved.serial) == []
    for number in range(RECENT + 1):
        events.emit(EventKind.CACHED, str(number))
    assert [event.subject for event in events.recent()][:2] == ["library/app:1", "1"]
    assert len(events.recent([EventKind.CACHED])) == RECENT


async def test_a_part_learns_when_other_kinds_are_wanted() -> None:
    events = Events()
    told: list[bool] = []
    events.on_wanted.append(lambda: told.append(events.wanted(EventKind.PULL)))
    with events.subscribed([EventKind.PULL]):
        with events.subscribed([EventKind.PULL]):
            pass
        assert told == [True], "nothing changes with the second subscriber"
    assert told == [True, False]


async def test_an_event_of_another_process_keeps_its_time() -> None:
    events = Events(clock=lambda: 9.0)
    with events.subscribed() as subscription:
        events.emit_of(5.0, EventKind.PULL, "library/app:1", {"bytes": 3})
        event = await subscription.next()
        assert (event.time, event.data) == (5.0, {"bytes": 3})


def test_parts_that_are_used_alone_have_no_subscribers() -> None:
    NULL_EMITTER.emit(EventKind.PULL, "library/app:1")
    assert not NULL_EMITTER.wanted(EventKind.PULL)
