"""Places for bodies: downloads in their order, helpers only while nobody else wants to go."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from proxy.upstream.slots import Slots

SOON = 0.02


async def taken(stack: AsyncExitStack, places: Slots, patience: float = SOON) -> None:
    await stack.enter_async_context(places.one(patience))


async def test_who_waits_gets_the_next_place_in_order() -> None:
    places, order = Slots(1), []

    async def one(name: str) -> None:
        async with places.one(5):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*(one(name) for name in "abcd"))
    assert order == list("abcd")


async def test_who_has_waited_in_vain_goes_without_but_not_without_end() -> None:
    places = Slots(2)
    async with AsyncExitStack() as stack:
        for _ in range(4):
            await taken(stack, places)
        with pytest.raises(TimeoutError):
            await taken(stack, places)
    async with AsyncExitStack() as stack:
        await taken(stack, places)
        await taken(stack, places)
        assert places.borrow(lambda: None) is None, "two came back, not four"


async def test_a_loan_is_recalled_when_its_place_is_wanted() -> None:
    places, recalled = Slots(2), []
    early = places.borrow(lambda: recalled.append("early"))
    late = places.borrow(lambda: recalled.append("late"))
    assert early is not None
    assert late is not None
    assert places.borrow(lambda: None) is None
    async with places.one(0):
        assert recalled == ["late"]
        late.give_back()
        early.give_back()
        early.give_back()
        async with places.one(0):
            assert places.borrow(lambda: None) is None, "both are in use"
    assert places.borrow(lambda: None) is not None


async def test_half_of_the_places_is_not_for_what_nobody_has_asked_for() -> None:
    assert not Slots(1).has_some_to_spare
    places = Slots(4)
    async with AsyncExitStack() as stack:
        for spare in (True, True, False, False):
            assert places.has_some_to_spare is spare
            await taken(stack, places)


async def test_who_leaves_while_waiting_takes_no_place_along() -> None:
    places = Slots(1)
    async with places.one(5):
        waiting = [asyncio.create_task(places.one(5).__aenter__()) for _ in range(3)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
    waiting[1].cancel()  # its turn has come in this very moment
    await asyncio.wait([waiting[2]], timeout=1)
    assert waiting[2].done()
    assert not waiting[2].exception()
    await asyncio.gather(*waiting, return_exceptions=True)
