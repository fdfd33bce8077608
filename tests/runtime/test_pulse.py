"""A beat wakes every task that waits, and no task that begins to wait later."""

import asyncio

from proxy.runtime.pulse import Pulse
from tests.running import until


async def test_one_beat_wakes_all_that_wait() -> None:
    pulse = Pulse()
    waiting = [asyncio.create_task(pulse.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)
    pulse.beat()
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)


async def test_a_task_that_begins_to_wait_after_a_beat_waits_for_the_next_one() -> None:
    pulse = Pulse()
    pulse.beat()
    late = asyncio.create_task(pulse.wait())
    await asyncio.sleep(0)
    assert not late.done()
    pulse.beat()
    await until(late.done)


async def test_a_task_that_left_does_not_disturb_a_beat() -> None:
    pulse = Pulse()
    left, stays = asyncio.create_task(pulse.wait()), asyncio.create_task(pulse.wait())
    await asyncio.sleep(0)
    left.cancel()
    await asyncio.wait([left])
    pulse.beat()
    await until(stays.done)
    assert not stays.cancelled()


async def test_a_beat_keeps_nothing_of_those_it_woke() -> None:
    pulse = Pulse()
    for _ in range(3):
        waiting = asyncio.create_task(pulse.wait())
        await asyncio.sleep(0)
        pulse.beat()
        await waiting
    assert pulse._waiting == []
