"""Slots for bodies: downloads in their order, range workers only while no download needs them."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from proxy.upstream.slots import Slots

SOON = 0.02


async def taken(stack: AsyncExitStack, slots: Slots, patience: float = SOON) -> None:
    await stack.enter_async_context(slots.occupy(patience))


async def test_waiters_get_slots_in_order() -> None:
    slots, order = Slots(1), []

    async def one(name: str) -> None:
        async with slots.occupy(5):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(name) for name in "abcd"))
    assert order == list("abcd")


async def test_a_waiter_exceeds_the_bound_after_the_timeout_but_only_so_many() -> None:
    slots = Slots(2)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await taken(stack, slots)
        with pytest.raises(TimeoutError):
            await taken(stack, slots)
    async with AsyncExitStack() as stack:
        await taken(stack, slots)
        await taken(stack, slots)
        assert slots.borrow() is None, "two came back, not four"


async def test_a_lent_slot_is_taken_back_when_a_download_needs_it() -> None:
    slots = Slots(2)
    early, late = slots.borrow(), slots.borrow()
    assert early is not None
    assert late is not None
    for lent in (early, late):
        lent.task = asyncio.create_task(asyncio.sleep(60))
    assert slots.borrow() is None
    async with slots.occupy(0):
        await asyncio.wait([late.task], timeout=30)
        assert late.task.cancelled()
        assert not early.task.done()
        late.release()
        early.release()
        early.release()
        async with slots.occupy(0):
            assert slots.borrow() is None, "both are in use"
    assert slots.borrow() is not None
    early.task.cancel()


async def test_half_of_the_slots_is_not_for_prefetching() -> None:
    assert not Slots(1).has_spare
    slots = Slots(4)
    async with AsyncExitStack() as stack:
        for spare in (True, True, False, False):
            assert slots.has_spare is spare
            await taken(stack, slots)


async def test_a_cancelled_waiter_takes_no_slot_along() -> None:
    slots = Slots(1)
    async with slots.occupy(5):
        waiting = [asyncio.create_task(slots.occupy(5).__aenter__()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
    waiting[1].cancel()  # its turn has come in this very moment
    await asyncio.wait([waiting[2]], timeout=1)
    assert waiting[2].done()
    assert not waiting[2].exception()
    await asyncio.gather(*waiting, return_exceptions=True)


async def test_a_slot_that_comes_back_when_a_waiter_has_timed_out_goes_to_the_next() -> None:
    """The loop was busy: the time is up, the waiter's task has not run yet, and a slot is free."""
    slots = Slots(1)
    async with slots.occupy(5):
        late = asyncio.create_task(slots.occupy(5).__aenter__())
        next_one = asyncio.create_task(slots.occupy(5).__aenter__())
        await asyncio.sleep(0)
        late.cancel()  # what its timeout does
    await asyncio.wait([late, next_one], timeout=30)
    assert late.cancelled()
    assert next_one.result() is None


async def test_a_slot_that_comes_back_when_the_only_waiter_has_timed_out_is_free() -> None:
    slots = Slots(1)
    async with slots.occupy(5):
        late = asyncio.create_task(slots.occupy(5).__aenter__())
        await asyncio.sleep(0)
        late.cancel()
    await asyncio.wait([late], timeout=30)
    assert late.cancelled()
    assert slots.borrow() is not None
