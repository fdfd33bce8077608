"""Imports are remembered; the oldest are forgotten first."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.names import Digest, sha256
from proxy.services import imports
from proxy.services.bundle.contents import Contents
from proxy.services.imports import Imports
from tests.fakes.clock import Clock
from tests.held import Held, opened

DIGEST = sha256(b"one")


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


async def add(cache: Held, source: str, images: dict[str, Digest]) -> None:
    value = await Imports(cache.content).with_new(Contents(source, "", 5.0), images)
    await cache.content.set_note(imports.NOTE, value)


async def test_the_latest_imports_are_remembered(cache: Held, clock: Clock) -> None:
    known = Imports(cache.content)
    for number in range(imports.MAX_IMPORTS + 1):
        clock.advance(1)
        await add(cache, f"host {number}", {"docker.io/library/app:1": DIGEST})
    found = await Imports(cache.content).of("docker.io/library/app:1")
    assert len(found) == imports.MAX_IMPORTS
    assert (found[0].source, found[-1].source) == ("host 1", f"host {imports.MAX_IMPORTS}")
    assert (found[-1].at, found[-1].created_at) == (clock(), 5.0)
    assert await known.of("docker.io/library/other:1") == []


async def test_many_images_push_out_the_oldest_imports(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imports, "MAX_IMAGES", 3)
    known = Imports(cache.content)
    for source, tags in (("a", "12"), ("b", "34"), ("c", "12345")):
        images = {f"docker.io/library/app:{tag}": DIGEST for tag in tags}
        await add(cache, source, images)
    [latest] = await known.all()
    assert (latest.source, len(latest.images)) == ("c", 3)


async def test_a_note_of_another_version_is_no_failure(cache: Held) -> None:
    await cache.content.set_note(imports.NOTE, ["text", {"images": ["docker.io/library/app:1"]}])
    [one] = await Imports(cache.content).all()
    assert (one.source, one.images) == ("", {})
