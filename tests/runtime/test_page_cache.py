"""Bytes outside of the page cache are read in a thread before they are sent."""

import asyncio
import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.runtime import page_cache
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy

SIZE = 3_000_000
IMAGE = content.image(1, layers=(SIZE,))
[LAYER] = IMAGE.layers
BLOB = f"/v2/library/app/blobs/{LAYER}"


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    path = tmp_path / "file"
    path.write_bytes(content.blob(SIZE))
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def forget(fd: int) -> None:
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except BlockingIOError:
        return
    pytest.skip("this file system keeps its files in memory")


async def test_what_is_cold_is_warmed(file: int) -> None:
    assert page_cache.is_cached(file, 0, SIZE)
    forget(file)
    assert not page_cache.is_cached(file, 0, SIZE)
    await page_cache.load(file, 1_000_000, 2_000_000, SIZE)
    assert page_cache.is_cached(file, 1_000_000, 2_000_000)


async def test_the_share_of_a_file_that_is_cached(file: int) -> None:
    assert page_cache.share(file, SIZE) == 1
    forget(file)
    assert page_cache.share(file, SIZE) < 1
    page_cache.fill(file, SIZE)
    assert page_cache.share(file, SIZE) == 1
    assert page_cache.share(file, 0) == 1, "nothing is missing of an empty file"


async def test_a_share_that_is_not_known_is_none(
    file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_: Any) -> int:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "preadv", unsupported)
    assert page_cache.share(file, SIZE) == 0


async def test_only_what_is_cold_takes_a_thread(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: list[str] = []
    read = page_cache._read

    def watched(*arguments: int) -> None:
        threads.append(threading.current_thread().name)
        read(*arguments)

    monkeypatch.setattr(page_cache, "_read", watched)
    await page_cache.load(file, 0, SIZE, SIZE)
    assert threads == []
    forget(file)
    await page_cache.load(file, 0, SIZE, SIZE)
    assert len(threads) == 1
    assert threads != [threading.current_thread().name]


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
async def test_a_file_system_that_cannot_tell_is_believed_warm(
    file: int, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(number, "cannot tell")

    monkeypatch.setattr(os, "preadv", refuse)
    assert page_cache.is_cached(file, 0, SIZE)


async def test_the_end_of_a_file_that_shrank_is_no_trouble(tmp_path: Path) -> None:
    path = tmp_path / "short"
    path.write_bytes(b"short")
    fd = os.open(path, os.O_RDONLY)
    try:
        await page_cache.load(fd, 0, SIZE, SIZE)
        await asyncio.to_thread(page_cache._read, fd, 0, SIZE, SIZE)
    finally:
        os.close(fd)


async def test_a_cold_blob_is_sent_whole(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    await proxy.get(BLOB)
    await proxy.settled()
    algorithm, _, encoded = LAYER.partition(":")
    fd = os.open(proxy.storage / "blobs" / algorithm / encoded, os.O_RDONLY)
    try:
        forget(fd)
    finally:
        os.close(fd)
    assert (await proxy.get(BLOB)).body == IMAGE.blobs[LAYER]
    part = await proxy.get(BLOB, Range="bytes=1000000-1999999")
    assert part.body == IMAGE.blobs[LAYER][1_000_000:2_000_000]
