"""How much room unproven downloads may take: the rules alone; ``test_room`` shows them over HTTP."""

import pytest

from proxy.content.unproven import Unproven
from proxy.core.records import BLOCK

ONE, OTHER = "one.example", "other.example"


@pytest.mark.parametrize(
    ("occupied", "held", "may"),
    [
        (0, 0, True),
        (25, 75, True),  # exactly the share of what lies here with it
        (26, 75, False),
        (50, 100, False),
        (1, 0, False),  # nothing else is held: a share of nothing
    ],
)
def test_content_is_evicted_up_to_the_share(occupied: int, held: int, may: bool) -> None:
    unproven = Unproven(0.25)
    unproven.occupy(ONE, occupied * BLOCK)
    assert unproven.may_evict(ONE, held * BLOCK) is may


def test_each_upstream_has_a_share_for_itself() -> None:
    unproven = Unproven(0.25)
    unproven.occupy(ONE, 60 * BLOCK)
    unproven.occupy(OTHER, 10 * BLOCK)
    assert not unproven.may_evict(ONE, 100 * BLOCK)
    assert unproven.may_evict(OTHER, 100 * BLOCK)
    assert unproven.bytes == 70 * BLOCK
    unproven.occupy(ONE, -60 * BLOCK)
    assert unproven.may_evict(ONE, 100 * BLOCK)
    assert unproven.bytes == 10 * BLOCK


@pytest.mark.parametrize(
    ("announced", "held", "free", "fits"),
    [
        (40, 0, 100, True),  # free room
        (60, 0, 100, True),
        (61, 0, 100, False),
        (10, 200, 0, True),  # no free room: the share of what is held
        (11, 200, 0, False),
        (0, 200, 0, True),
    ],
)
def test_announced_sizes_fit_into_free_room_or_the_share(
    announced: int, held: int, free: int, fits: bool
) -> None:
    unproven = Unproven(0.25)
    unproven.announce(ONE, announced * BLOCK)
    unproven.announce(OTHER, 1000 * BLOCK)
    size = 40 * BLOCK - 1  # takes 40 blocks
    assert unproven.admits(ONE, size, held=held * BLOCK, free=free * BLOCK) is fits


def test_a_download_that_ended_leaves_room_for_the_next() -> None:
    unproven = Unproven(0.25)
    unproven.announce(ONE, 80 * BLOCK)
    assert not unproven.admits(ONE, 40 * BLOCK, held=0, free=100 * BLOCK)
    unproven.announce(ONE, -80 * BLOCK)
    assert unproven.admits(ONE, 40 * BLOCK, held=0, free=100 * BLOCK)


def test_room_that_a_download_took_is_no_less_for_its_upstream() -> None:
    unproven = Unproven(0.0)
    unproven.occupy(ONE, 70 * BLOCK)
    assert unproven.admits(ONE, 100 * BLOCK, held=0, free=30 * BLOCK)
    assert not unproven.admits(ONE, 101 * BLOCK, held=0, free=30 * BLOCK)
