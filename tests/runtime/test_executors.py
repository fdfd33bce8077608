"""Threads: slow work of one kind does not delay another, and none is left behind."""

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.runtime import executors
from proxy.runtime.executors import LARGE, Pool, in_thread, in_thread_if_large, run_to_completion
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start, until

IMAGE = content.image(1, layers=(1000,))
SLOW = 1 + max(threads for pool, threads in executors.THREADS.items() if pool is not Pool.SYNC)
"""As many slow fsyncs as would occupy every thread of any other pool, and one more."""


class SlowDisk:
    """Holds every ``fsync`` of content until it is released."""

    def __init__(self) -> None:
        self.held = 0
        self.is_slow = False
        self._released = threading.Event()
        self._fsync = os.fsync

    def fsync(self, fd: int) -> None:
        if self.is_slow and "/spool/" in str(Path(f"/proc/self/fd/{fd}").readlink()):
            self.held += 1
            self._released.wait()
        self._fsync(fd)

    def release(self) -> None:
        self._released.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowDisk]:
    slow = SlowDisk()
    monkeypatch.setattr(os, "fsync", slow.fsync)
    yield slow
    slow.release()


async def test_a_cold_manifest_is_served_while_fsyncs_are_slow(
    start: Start, upstream: FakeUpstream, disk: SlowDisk
) -> None:
    upstream.add("library/app", IMAGE)
    first = await start()
    assert (await first.get("/v2/app/manifests/latest")).status == 200
    await first.settled()
    await first.close()
    blobs = [upstream.add_blob("library/app", content.blob(1000 + n)) for n in range(SLOW)]
    proxy = await start()
    disk.is_slow = True
    pulls = [asyncio.create_task(proxy.get(f"/v2/app/blobs/{digest}")) for digest in blobs]
    try:
        await until(lambda: disk.held == SLOW)
        asked = len(upstream.requests)
        answer = await proxy.get(f"/v2/app/manifests/{IMAGE.digest}")
        assert (answer.status, answer.body) == (200, IMAGE.manifest)
        assert len(upstream.requests) == asked, "it was read from the disk"
        assert disk.held == SLOW
    finally:
        disk.release()
        answers = await asyncio.gather(*pulls)
    assert {answer.status for answer in answers} == {200}


@pytest.mark.parametrize("pool", Pool)
async def test_each_pool_has_threads_of_its_own(pool: Pool) -> None:
    name = await in_thread(lambda: threading.current_thread().name, pool)
    assert name.startswith(f"{pool.value}_")


async def test_a_cancelled_task_waits_for_its_thread() -> None:
    began, release, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        release.wait()
        ended.set()

    task = asyncio.create_task(in_thread(work))
    await until(began.is_set)
    try:
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        is_done = task.done()
    finally:
        release.set()
    assert not is_done
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended.is_set()


async def test_the_failure_of_cancelled_work_is_not_reported_as_lost() -> None:
    release = asyncio.Event()

    async def work() -> None:
        await release.wait()
        raise LookupError

    task = asyncio.create_task(run_to_completion(work()))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("size", "is_in_thread"), [(LARGE, False), (LARGE + 1, True)])
async def test_large_work_runs_in_a_thread(size: int, *, is_in_thread: bool) -> None:
    thread = await in_thread_if_large(size, threading.current_thread)
    assert (thread is not threading.main_thread()) == is_in_thread
