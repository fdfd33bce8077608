"""Tags that wait for work: coalesced, bounded, and a few at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from proxy.core.errors import Overloaded
from proxy.core.names import Repo, Tag, Target
from proxy.runtime.supervisor import running_beside
from proxy.services.tag_queue import MAX_WAITING, Key, TagQueue

TARGET = Target("docker.io", Repo("acme/app"))


def key(number: int) -> Key:
    return TARGET, Tag(str(number))


class Work:
    """Work that lasts until it is let go."""

    def __init__(self) -> None:
        self.started: list[Tag] = []
        self.gate = asyncio.Event()
        self.changed = asyncio.Event()

    async def __call__(self, target: Target, tag: Tag) -> None:
        self.started.append(tag)
        self.changed.set()
        await self.gate.wait()

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.started) < count:
                self.changed.clear()
                await self.changed.wait()


@asynccontextmanager
async def queue(work: Work, concurrency: int = 2, pause: float = 0.0) -> AsyncIterator[TagQueue]:
    one = TagQueue(work, concurrency=concurrency, pause=pause)
    async with running_beside(one.run(), "queue"):
        yield one


async def test_a_few_at_a_time_in_order() -> None:
    work = Work()
    async with queue(work) as tags:
        tags.add([key(number) for number in range(5)])
        await work.until(2)
        await asyncio.sleep(0.05)
        assert work.started == ["0", "1"]
        work.gate.set()
        await work.until(5)
    assert work.started == ["0", "1", "2", "3", "4"]


async def test_a_tag_that_waits_or_runs_is_worked_on_once_more_at_most() -> None:
    work = Work()
    async with queue(work) as tags:
        for _ in range(10):
            tags.add([key(1), key(1)])
        await work.until(1)
        for _ in range(10):
            tags.add([key(1)])
        await asyncio.sleep(0.05)
        assert work.started == ["1"], "not twice at the same time"
        work.gate.set()
        await work.until(2)
        await asyncio.sleep(0.05)
        assert work.started == ["1", "1"]


async def test_a_tag_rests_and_others_do_not_wait_for_it() -> None:
    work = Work()
    work.gate.set()
    loop = asyncio.get_running_loop()
    async with queue(work, pause=0.4) as tags:
        tags.add([key(1)])
        await work.until(1)
        began = loop.time()
        tags.add([key(1), key(2)])
        await work.until(3)
        assert work.started == ["1", "2", "1"]
        assert loop.time() - began >= 0.3


async def test_a_full_queue_takes_all_or_nothing() -> None:
    tags = TagQueue(Work(), concurrency=1, pause=0.0)
    tags.add([key(number) for number in range(MAX_WAITING - 1)])
    with pytest.raises(Overloaded):
        tags.add([key(MAX_WAITING), key(MAX_WAITING + 1)])
    assert len(tags) == MAX_WAITING - 1
    tags.add([key(0), key(MAX_WAITING)])
    assert len(tags) == MAX_WAITING
