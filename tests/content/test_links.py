"""Which repository may serve what: confirmed, presumed until a restart, or public."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.names import sha256
from proxy.core.records import Descriptor
from tests.fakes.clock import Clock
from tests.held import Held, named, opened

TARGET, _ = named("app:1")
OTHER, _ = named("ghcr.io/team/app:1")
PUBLIC, PRIVATE = b"for everybody", b"for some"


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


async def test_a_repository_serves_what_it_is_confirmed_to_hold(cache: Held) -> None:
    digest, links = await cache.hold(PRIVATE), cache.content.links
    assert not await links.has(TARGET, digest)
    await links.add(TARGET, [digest])
    assert await links.has(TARGET, digest)
    assert await links.is_confirmed(TARGET, digest)
    assert not await links.has(OTHER, digest)
    assert await links.holders(digest) == [TARGET]


async def test_a_presumed_link_serves_and_confirms_nothing(cache: Held) -> None:
    digest, links = await cache.hold(PRIVATE), cache.content.links
    for _ in range(2):
        links.presume(TARGET, [digest])
    assert await links.has(TARGET, digest)
    assert not await links.is_confirmed(TARGET, digest)
    assert not await links.has(OTHER, digest)
    assert await links.holders(digest) == []


async def test_presumed_links_end_with_the_process(tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path, clock) as cache:
        digest = await cache.hold(PRIVATE)
        cache.content.links.presume(TARGET, [digest])
        await cache.content.links.add(OTHER, [digest])
    async with opened(tmp_path, clock) as cache:
        assert not await cache.content.links.has(TARGET, digest)
        assert await cache.content.links.has(OTHER, digest)


async def test_only_public_content_that_is_held_is_linked_by_a_claim(cache: Held) -> None:
    private, public = await cache.hold(PRIVATE), sha256(PUBLIC)
    await cache.content.store_manifest(Descriptor("", public, len(PUBLIC)), PUBLIC, is_public=True)
    absent = sha256(b"nobody has this")
    links = cache.content.links
    await links.add_public(TARGET, [private, public, absent])
    linked = [digest for digest in (private, public, absent) if await links.has(TARGET, digest)]
    assert linked == [public]
