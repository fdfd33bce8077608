"""Bodies from memory: their common limit, and the turns of the event loop that they share."""

import asyncio
from contextlib import ExitStack

import pytest

from proxy.web.pacing import SendBuffer, Turns


class BodyReceiver:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def cut_off(self, reason: str) -> None:
        self.reasons.append(reason)


def copied(body: bytes) -> bytes:
    """The same bytes in another place."""
    return bytes(bytearray(body))


def test_t53_equal_bodies_are_kept_once() -> None:
    send_buffer = SendBuffer(100)
    first, second = b"x" * 80, copied(b"x" * 80)
    assert first is not second
    with send_buffer.sending(first, BodyReceiver()) as one:
        with send_buffer.sending(second, BodyReceiver()) as other:
            assert one is other is first
            assert send_buffer.bytes == 80
        assert send_buffer.bytes == 80
    assert send_buffer.bytes == 0
    with send_buffer.sending(second, BodyReceiver()) as alone:
        assert alone is second, "nothing is kept when nobody receives it"


def test_t53_the_receiver_that_began_first_makes_room() -> None:
    send_buffer = SendBuffer(100)
    receivers = [BodyReceiver() for _ in range(4)]
    with ExitStack() as stack:
        for number, receiver in enumerate(receivers):
            stack.enter_context(send_buffer.sending(bytes([number]) * 40, receiver))
            assert send_buffer.bytes <= 100
        assert [len(receiver.reasons) for receiver in receivers] == [1, 1, 0, 0]
    assert send_buffer.bytes == 0


def test_t53_a_body_counts_until_its_last_receiver_has_gone() -> None:
    send_buffer = SendBuffer(100)
    early, late, newest = BodyReceiver(), BodyReceiver(), BodyReceiver()
    with ExitStack() as stack:
        stack.enter_context(send_buffer.sending(b"a" * 60, early))
        stack.enter_context(send_buffer.sending(b"a" * 60, late))
        stack.enter_context(send_buffer.sending(b"b" * 60, newest))
        assert (early.reasons, late.reasons) != ([], []), "one is not enough: they share it"
        assert early.reasons
        assert late.reasons
        assert not newest.reasons
        assert send_buffer.bytes == 60
    assert send_buffer.bytes == 0


def test_t53_a_single_body_may_be_longer_than_all_together() -> None:
    send_buffer = SendBuffer(10)
    receiver = BodyReceiver()
    with send_buffer.sending(b"x" * 50, receiver):
        assert send_buffer.bytes == 50
    assert (receiver.reasons, send_buffer.bytes) == ([], 0)


def test_t53_a_receiver_that_fails_is_counted_no_longer() -> None:
    send_buffer = SendBuffer(100)
    with pytest.raises(ConnectionError), send_buffer.sending(b"x" * 50, BodyReceiver()):
        raise ConnectionError
    assert send_buffer.bytes == 0


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
    assert not turns._is_scheduled
    async with asyncio.timeout(10):
        for _ in range(5):
            await turns.take()
