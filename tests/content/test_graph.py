"""Held manifests as a graph, over a real index: their children, and unnamed ones."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.names import Digest
from proxy.core.records import Descriptor
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.held import Held, named, opened

IMAGE = content.image(1)
INDEX = content.multi_platform(2)
LOOSE = content.image(3)
TARGET, _ = named("app:1")


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


async def untagged(cache: Held) -> set[tuple[str, str]]:
    batches = [batch async for batch in cache.content.graph.untagged()]
    return {(str(target), record.digest) for batch in batches for target, record in batch}


async def test_children_are_listed_and_not_known_differs_from_none(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    graph = cache.content.graph
    assert set(await graph.children(Digest(IMAGE.digest)) or ()) == set(IMAGE.blobs)
    assert await graph.children(Digest(IMAGE.config)) == ()
    assert await graph.children(Digest(LOOSE.digest)) == ()
    unknown = Descriptor(LOOSE.media_type, Digest(LOOSE.digest), len(LOOSE.manifest))
    await cache.content.store_manifest(unknown, LOOSE.manifest, None)
    assert await graph.children(unknown.digest) is None
    assert await graph.listed(unknown.digest) == ()


async def test_a_tree_has_all_that_is_listed_even_if_it_is_not_held(cache: Held) -> None:
    await cache.image("app:1", INDEX, but=(INDEX.children[0].digest,))
    found = await cache.content.graph.tree(Digest(INDEX.digest))
    [first, second] = INDEX.children
    assert found[0] == INDEX.digest
    assert set(found) == {INDEX.digest, first.digest, second.digest, *second.blobs}
    assert found.index(Digest(second.digest)) < min(found.index(Digest(d)) for d in second.blobs)


async def test_parents_are_the_held_manifests_that_list_it(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    await cache.image("app:2", INDEX)
    graph, [first, _] = cache.content.graph, INDEX.children
    assert await graph.parents(Digest(IMAGE.config)) == [IMAGE.digest]
    assert await graph.parents(Digest(first.digest)) == [INDEX.digest]
    assert await graph.parents(Digest(IMAGE.digest)) == []
    assert await graph.is_listed(Digest(IMAGE.config))
    assert not await graph.is_listed(Digest(IMAGE.digest))


async def test_what_others_list_is_told_apart_from_what_only_these_list(cache: Held) -> None:
    shared = content.index(IMAGE)
    await cache.image("app:1", IMAGE)
    await cache.image("app:2", shared)
    both = {Digest(IMAGE.digest), Digest(shared.digest), Digest(IMAGE.config)}
    graph = cache.content.graph
    assert await graph.listed_by_others(both, both) == set()
    rest = both - {shared.digest}
    assert await graph.listed_by_others(rest, rest) == {IMAGE.digest}
    assert await graph.listed_by_others([], both) == set()
    assert await graph.listed_by_others([Digest(IMAGE.config)], set()) == {IMAGE.config}


async def test_untagged_manifests_are_those_that_nothing_names(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    await cache.image("app:2", INDEX)
    loose = await cache.hold(LOOSE.manifest, LOOSE.media_type)
    assert await untagged(cache) == set()  # no repository is known to hold it
    await cache.content.links.add(TARGET, [loose])
    assert await untagged(cache) == {(str(TARGET), loose)}


async def test_a_tag_of_a_repository_that_does_not_hold_it_names_nothing(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    other, _ = named("ghcr.io/team/app:1")
    await cache.content.links.add(other, [Digest(IMAGE.digest)])
    assert await untagged(cache) == set()
    await cache.content.links.remove(TARGET, [Digest(IMAGE.digest)])
    assert await untagged(cache) == {(str(other), IMAGE.digest)}
