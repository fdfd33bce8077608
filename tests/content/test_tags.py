"""Tags: all of them in order, with held and linked manifests."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.content import facts
from proxy.core.names import Digest, Tag
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.held import Held, named, opened

IMAGE, OTHER = content.image(1), content.image(2)
TARGET, _ = named("app:1")


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


async def names(cache: Held) -> list[str]:
    return [image.name async for batch in cache.content.tags.all() for image in batch]


async def test_all_tags_come_sorted_in_batches(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_BATCH", 2)
    for name in ("b:2", "a:1", "ghcr.io/x/y:1", "b:1", "a:2"):
        await cache.image(name, IMAGE)
    batches = [[image.name for image in batch] async for batch in cache.content.tags.all()]
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert await names(cache) == [
        "docker.io/library/a:1",
        "docker.io/library/a:2",
        "docker.io/library/b:1",
        "docker.io/library/b:2",
        "ghcr.io/x/y:1",
    ]


async def test_a_tag_says_whether_its_manifest_is_held_and_linked(cache: Held) -> None:
    await cache.image("app:held", IMAGE)
    await cache.image("app:gone", OTHER, but=(OTHER.digest,))
    await cache.content.links.remove(TARGET, [Digest(IMAGE.digest)])
    [batch] = [batch async for batch in cache.content.tags.all()]
    gone, held = batch
    assert (gone.tag, gone.digest, gone.held, gone.is_linked) == ("gone", OTHER.digest, None, True)
    assert (held.tag, held.digest, held.is_linked) == ("held", IMAGE.digest, False)
    assert held.held is not None
    assert held.held.digest == IMAGE.digest


async def test_the_tags_of_a_manifest_are_found(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    await cache.image("app:2", OTHER)
    await cache.image("ghcr.io/x/y:latest", IMAGE)
    found = await cache.content.tags.pointing_to(Digest(IMAGE.digest))
    assert [image.name for image in found] == ["docker.io/library/app:1", "ghcr.io/x/y:latest"]


async def test_a_tag_that_goes_meanwhile_is_left_out(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "_BATCH", 1)
    for name in ("app:1", "app:2", "app:3"):
        await cache.image(name, IMAGE)
    found = []
    async for batch in cache.content.tags.all():
        found += [image.tag for image in batch]
        await cache.content.tags.set(TARGET, Tag("2"), None)
    assert found == ["1", "3"]
