"""The free space of the file system: when it is asked for, and when an answer is used again."""

import pytest

from proxy.content import free_space
from proxy.content.free_space import FRESH_BYTES, FreeSpace
from proxy.core.errors import StorageError
from proxy.core.records import BLOCK


class Disk:
    """A file system on which the cache and other programs write."""

    def __init__(self) -> None:
        self.left = 1000 * BLOCK
        self.asked = 0
        self.troubles = 0
        self.fails = False

    def free(self) -> int:
        self.asked += 1
        if self.fails:
            raise StorageError("the disk is gone")
        return self.left

    def trouble(self) -> None:
        self.troubles += 1


class Monotonic:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def disk() -> Disk:
    return Disk()


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Monotonic:
    clock = Monotonic()
    monkeypatch.setattr(free_space, "time", clock)
    return clock


@pytest.fixture
def space(disk: Disk, time: Monotonic) -> FreeSpace:
    return FreeSpace(disk, disk.trouble)  # type: ignore[arg-type]  # it only asks for ``free``


def test_an_answer_is_used_for_a_second(space: FreeSpace, disk: Disk, time: Monotonic) -> None:
    assert space.total(lambda: 5 * BLOCK) == 1005 * BLOCK
    disk.left = 0
    time.now += 1.0
    assert space.total(lambda: 7 * BLOCK) == 1005 * BLOCK  # as of the question
    assert disk.asked == 1
    time.now += 0.1
    assert space.total(lambda: 7 * BLOCK) == 7 * BLOCK
    assert disk.asked == 2


def test_many_bytes_are_asked_for_again_within_the_second(space: FreeSpace, disk: Disk) -> None:
    space.total(lambda: 0)
    space.expect(FRESH_BYTES // 2)
    space.expect(FRESH_BYTES // 2)
    disk.left -= 900 * BLOCK  # another program
    assert space.total(lambda: 0) == 1000 * BLOCK
    space.expect(1)
    assert space.total(lambda: 0) == 100 * BLOCK
    space.expect(FRESH_BYTES - 1)
    space.total(lambda: 0)
    assert disk.asked == 2


def test_an_expired_answer_is_asked_for_again(space: FreeSpace, disk: Disk) -> None:
    space.total(lambda: 0)
    space.expire()
    space.total(lambda: 0)
    assert disk.asked == 2


def test_a_file_system_that_gives_no_answer_is_reported(
    space: FreeSpace, disk: Disk, time: Monotonic
) -> None:
    space.total(lambda: 0)
    disk.fails = True
    time.now += 2
    assert space.total(lambda: 0) is None  # not the answer of before
    assert space.total(lambda: 0) is None
    assert (disk.troubles, disk.asked) == (1, 2)
    disk.fails = False
    time.now += 2
    assert space.total(lambda: BLOCK) == 1001 * BLOCK
