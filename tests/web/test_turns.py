"""How those who send from memory share the turns of the event loop."""

import asyncio

from proxy.web.turns import Turns


async def turn() -> None:
    await asyncio.sleep(0)


async def test_t53_many_who_send_at_once_leave_turns_to_others() -> None:
    turns, steps, most = Turns(3), 0, 0

    async def send() -> None:
        nonlocal steps
        for _ in range(10):
            await turns.take()
            steps += 1

    senders = [asyncio.create_task(send()) for _ in range(20)]
    looks = 0
    while not all(sender.done() for sender in senders):
        before = steps
        await turn()
        most = max(most, steps - before)
        looks += 1
    assert steps == 200
    assert most <= 6, "what one turn permits and the next, if both fall between two looks"
    assert looks >= 200 / 6


async def test_those_who_wait_go_in_their_order() -> None:
    turns, order = Turns(1), list[int]()

    async def send(number: int) -> None:
        await turns.take()
        order.append(number)

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        for number in range(5):
            group.create_task(send(number))
    assert order == [0, 1, 2, 3, 4]


async def test_a_sender_that_is_cancelled_takes_no_turn() -> None:
    turns = Turns(1)
    await turns.take()
    gone, waits = (asyncio.create_task(turns.take()) for _ in range(2))
    await turn()
    gone.cancel()
    async with asyncio.timeout(10):
        await waits


async def test_nothing_runs_while_nobody_sends() -> None:
    turns = Turns(2)
    await turns.take()
    for _ in range(5):
        await turn()
    assert not turns._is_due
    async with asyncio.timeout(10):
        for _ in range(5):
            await turns.take()
