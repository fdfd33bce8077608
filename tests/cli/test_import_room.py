"""Imports into caches with little room: all fits, or nothing is sent and the error says why."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from proxy.storage.disk import DiskStore
from tests.cli.command import Done, beside
from tests.cli.test_bundles import layout
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, started
from tests.services.test_drop import tree

NAME = "docker.io/acme/large:1"
LARGE = content.image("large", layers=(400_000, 400_000, 400_000))
"""About 1.2 MB."""

OTHER = content.image("other", layers=(700_000,))

Open = Callable[..., Awaitable[Proxy]]
Import = Callable[[Proxy], Awaitable[Done]]


@pytest.fixture
async def lab(upstream: FakeUpstream, clock: Clock, tmp_path: Path) -> AsyncIterator[Open]:
    upstream.add("acme/other", OTHER, tags=["1"])
    async with AsyncExitStack() as stack:

        async def opened(**storage: Any) -> Proxy:
            return await stack.enter_async_context(
                started(upstream, tmp_path / "lab", clock, {"storage": storage})
            )

        yield opened


@pytest.fixture
def importing(tmp_path: Path) -> Import:
    layout(tmp_path / "layout", LARGE, NAME)

    async def run(proxy: Proxy) -> Done:
        arguments = ("import", str(tmp_path / "layout"), "--insecure")
        return await beside(*arguments, "--storage", str(proxy.storage))

    return run


async def pull_other(proxy: Proxy) -> None:
    for path in ("manifests/1", *(f"blobs/{digest}" for digest in OTHER.blobs)):
        assert (await proxy.get(f"/v2/acme/other/{path}")).status == 200
    await proxy.settled()


async def test_an_image_almost_as_large_as_the_cache_is_imported(
    lab: Open, importing: Import
) -> None:
    proxy = await lab(max_size=1_300_000)
    done = await importing(proxy)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(LARGE) <= proxy.held()


async def test_an_import_makes_room_whatever_unproven_bytes_may_evict(
    lab: Open, importing: Import
) -> None:
    """A downloaded layer of 400 kB may not evict this much; an operator's may."""
    proxy = await lab(max_size=1_300_000, unproven_share=0.01)
    await pull_other(proxy)
    done = await importing(proxy)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(LARGE) <= proxy.held()


async def test_too_large_an_import_says_so_before_it_sends_anything(
    lab: Open, importing: Import
) -> None:
    proxy = await lab(max_size=1_048_576, high_mark=0.9, low_mark=0.8)
    await pull_other(proxy)
    before = proxy.held()
    done = await importing(proxy)
    assert done.returncode == 2
    assert "all of it needs 1.2MiB in the cache, which has room for 921.6KiB" in done.stderr
    assert "storage.max_size is 1.0MiB, storage.high_mark is 90%" in done.stderr
    assert proxy.held() == before


async def test_pinned_images_take_room_from_an_import(lab: Open, importing: Import) -> None:
    proxy = await lab(max_size=1_600_000)
    await pull_other(proxy)
    assert (await beside("pin", "acme/other:1", "--storage", str(proxy.storage))).returncode == 0
    done = await importing(proxy)
    assert done.returncode == 2
    assert "other images that are pinned or in use take 692.0KiB" in done.stderr
    assert tree(OTHER) <= proxy.held()


async def test_a_full_disk_is_named_with_what_is_kept_free(
    lab: Open, importing: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskStore, "free", lambda _: 3 * 1024 * 1024)
    proxy = await lab(max_size=10_000_000, min_free="2MiB")
    done = await importing(proxy)
    assert done.returncode == 2
    assert "the disk has room for 1.0MiB, as storage.min_free keeps 2.0MiB free" in done.stderr
    assert proxy.held() == set()


async def test_what_is_held_already_is_not_evicted_for_the_rest(
    lab: Open, importing: Import, clock: Clock
) -> None:
    """The layers of the image that are held are the coldest content of a full cache."""
    proxy = await lab(max_size=1_700_000)
    assert (await importing(proxy)).returncode == 0
    layer = LARGE.layers[-1]
    await proxy.app.content.evictor.discard([layer])
    clock.advance(100)
    await pull_other(proxy)
    clock.advance(100)
    done = await importing(proxy)
    assert (done.returncode, done.stderr) == (0, "")
    assert tree(LARGE) <= proxy.held()
