"""The bound on what is sent from memory."""

from contextlib import ExitStack

import pytest

from proxy.web.paced import Outbox


class Receiver:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def cut_off(self, reason: str) -> None:
        self.reasons.append(reason)


def copied(body: bytes) -> bytes:
    """The same bytes in another place."""
    return bytes(bytearray(body))


def test_t53_equal_bodies_are_kept_once() -> None:
    outbox = Outbox(100)
    first, second = b"x" * 80, copied(b"x" * 80)
    assert first is not second
    with outbox.sending(first, Receiver()) as one:
        with outbox.sending(second, Receiver()) as other:
            assert one is other is first
            assert outbox.bytes == 80
        assert outbox.bytes == 80
    assert outbox.bytes == 0
    with outbox.sending(second, Receiver()) as alone:
        assert alone is second, "nothing is kept when nobody receives it"


def test_t53_the_receiver_that_began_first_makes_room() -> None:
    outbox = Outbox(100)
    receivers = [Receiver() for _ in range(4)]
    with ExitStack() as stack:
        for number, receiver in enumerate(receivers):
            stack.enter_context(outbox.sending(bytes([number]) * 40, receiver))
            assert outbox.bytes <= 100
        assert [len(receiver.reasons) for receiver in receivers] == [1, 1, 0, 0]
    assert outbox.bytes == 0


def test_t53_a_body_counts_until_its_last_receiver_has_gone() -> None:
    outbox = Outbox(100)
    early, late, newest = Receiver(), Receiver(), Receiver()
    with ExitStack() as stack:
        stack.enter_context(outbox.sending(b"a" * 60, early))
        stack.enter_context(outbox.sending(b"a" * 60, late))
        stack.enter_context(outbox.sending(b"b" * 60, newest))
        assert (early.reasons, late.reasons) != ([], []), "one is not enough: they share it"
        assert early.reasons
        assert late.reasons
        assert not newest.reasons
        assert outbox.bytes == 60
    assert outbox.bytes == 0


def test_t53_a_single_body_may_be_longer_than_all_together() -> None:
    outbox = Outbox(10)
    receiver = Receiver()
    with outbox.sending(b"x" * 50, receiver):
        assert outbox.bytes == 50
    assert (receiver.reasons, outbox.bytes) == ([], 0)


def test_t53_a_receiver_that_fails_is_counted_no_longer() -> None:
    outbox = Outbox(100)
    with pytest.raises(ConnectionError), outbox.sending(b"x" * 50, Receiver()):
        raise ConnectionError
    assert outbox.bytes == 0
