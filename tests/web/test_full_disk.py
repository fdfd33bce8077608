"""A disk that fills in the middle of a download: every response continues, also one that waits."""

import asyncio
import errno
import os

import pytest

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, until

SIZE = 1_000_000
IMAGE = content.image(1, layers=(SIZE,))
[LAYER] = IMAGE.layers
DATA = IMAGE.blobs[LAYER]
BLOB = f"/v2/library/app/blobs/{LAYER}"


@pytest.mark.parametrize("first", [0, 1000, SIZE // 2])
async def test_a_range_is_answered_though_the_disk_fills(
    proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, first: int
) -> None:
    upstream.add("library/app", IMAGE)
    release = upstream.stall(SIZE // 4, kind="blob", times=1)
    whole = asyncio.create_task(proxy.get(BLOB))
    await until(lambda: bool(proxy.stats["downloads"]) and proxy.stats["downloads"][0]["bytes"] > 0)
    part = asyncio.create_task(proxy.get(BLOB, Range=f"bytes={first}-"))
    await until(lambda: proxy.app.responses() == 2)
    await asyncio.sleep(0.05)  # it waits for bytes that have not arrived

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "pwrite", full)
    release.set()
    assert (await part).body == DATA[first:]
    assert (await whole).body == DATA
    assert LAYER not in proxy.held()
