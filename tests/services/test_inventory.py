"""The held content of images, and the images that need a missing piece."""

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from proxy.content.facts import TaggedImage
from proxy.core.manifests import OCI_INDEX
from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK, BlobRecord, Child, Descriptor, TagRecord
from proxy.services.inventory import State, Weight, broken_by, weigh
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.held import Held, named, opened

IMAGE = content.image(1, layers=(BLOCK, 2 * BLOCK))
INDEX = content.multi_platform(2, layers=(BLOCK, 2 * BLOCK))
NESTED = content.nested_index(3)


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


async def only(cache: Held) -> TaggedImage:
    [image] = [one async for batch in cache.content.tags.all() for one in batch]
    return image


async def weight_of(cache: Held) -> Weight:
    digest = (await only(cache)).digest
    return await weigh(cache.content, digest)


async def test_a_whole_image_with_its_size_and_last_use(cache: Held) -> None:
    await cache.image("app:1", IMAGE)
    image, weight = await only(cache), await weight_of(cache)
    assert image.name == "docker.io/library/app:1"
    assert weight.state is State.WHOLE
    assert (weight.held_bytes, weight.missing) == (5 * BLOCK, 0)
    assert image.record.descriptor.digest == IMAGE.digest
    cache.clock.advance(100)
    cache.index.touch(Digest(IMAGE.digest))
    used = cache.clock()
    await cache.index.coldest(None, 1)  # which writes what was used
    assert (await only(cache)).held.used_at == used


async def test_a_partial_image_with_the_number_of_missing_pieces(cache: Held) -> None:
    await cache.image("app:1", IMAGE, but=(IMAGE.layers[1], IMAGE.config))
    weight = await weight_of(cache)
    assert (weight.state, weight.missing, weight.held_bytes) == (State.PARTIAL, 2, 2 * BLOCK)


async def test_an_image_without_its_manifest_is_absent(cache: Held) -> None:
    await cache.image("app:1", IMAGE, but=(IMAGE.digest,))
    image, weight = await only(cache), await weight_of(cache)
    assert (weight.state, weight.missing) == (State.ABSENT, 1)
    assert (weight.held_bytes, image.held) == (0, None)


async def test_an_index_is_whole_if_one_of_its_images_is(cache: Held) -> None:
    first, second = INDEX.children
    await cache.image("app:1", INDEX, but=tuple(second.blobs))
    weight = await weight_of(cache)
    assert (weight.state, weight.missing) == (State.WHOLE, 0)
    assert weight.held_bytes == 7 * BLOCK
    await cache.index.drop_blobs([Digest(next(iter(first.blobs)))])
    weight = await weight_of(cache)
    assert (weight.state, weight.missing) == (State.PARTIAL, 1), "the nearest to whole tells"


async def test_an_index_none_of_whose_images_is_held(cache: Held) -> None:
    await cache.image(
        "app:1", INDEX, but=tuple({**INDEX.blobs} | {c.digest: 0 for c in INDEX.children})
    )
    weight = await weight_of(cache)
    assert (weight.state, weight.missing, weight.held_bytes) == (State.PARTIAL, 1, BLOCK)


async def test_an_index_in_an_index(cache: Held) -> None:
    inner, outer = NESTED.children
    await cache.image("app:1", NESTED, but=(outer.digest,))
    assert (await weight_of(cache)).state is State.WHOLE, "by an image of the inner one"
    lost = [Digest(next(iter(child.blobs))) for child in inner.children]  # type: ignore[union-attr]
    await cache.index.drop_blobs(lost)
    weight = await weight_of(cache)
    assert (weight.state, weight.missing) == (State.PARTIAL, 1)


async def test_indexes_with_countless_paths_are_weighed_at_once(cache: Held) -> None:
    """Eight rows of indexes, each of which lists all of the next row."""
    rows = [[sha256(b"%d %d" % (row, n)) for n in range(40)] for row in range(8)]
    for row, below in pairwise([*rows, [sha256(b"missing")]]):
        for digest in row:
            record = BlobRecord(digest, 10, OCI_INDEX, 1.0)
            await cache.index.set_blob(record, [Child(one, 10) for one in below])
    target, tag = named("app:1")
    descriptor = Descriptor(OCI_INDEX, rows[0][0], 10)
    await cache.index.set_tag(target, tag, TagRecord(descriptor, 0.0))
    weight = await weight_of(cache)
    assert (weight.held_bytes, weight.missing) == (281 * BLOCK, 1)


async def test_content_shared_by_images_of_an_index_counts_once(cache: Held) -> None:
    twin = content.Image(
        manifest=IMAGE.manifest + b"\n", media_type=IMAGE.media_type, blobs=IMAGE.blobs
    )
    await cache.image("app:1", content.index(IMAGE, twin))
    assert (await weight_of(cache)).held_bytes == cache.index.usage().disk_bytes == 7 * BLOCK


async def test_all_tags_are_listed_including_two_of_one_image(cache: Held) -> None:
    await cache.image("ghcr.io/team/app:b", IMAGE)
    await cache.image("app:2", IMAGE)
    await cache.image("app:1", INDEX)
    names = [one.name async for batch in cache.content.tags.all() for one in batch]
    assert names == [
        "docker.io/library/app:1",
        "docker.io/library/app:2",
        "ghcr.io/team/app:b",
    ]


async def test_the_images_that_a_missing_piece_breaks(cache: Held) -> None:
    child = INDEX.children[0]
    await cache.image("app:image", IMAGE)
    await cache.image("app:index", INDEX)
    await cache.image("ghcr.io/team/child:1", child)
    target, tag = named("app:never-pulled")
    descriptor = Descriptor(IMAGE.media_type, sha256(b"else"), 4)
    await cache.index.set_tag(target, tag, TagRecord(descriptor, 0.0))
    layer = Digest(next(iter(child.blobs)))
    broken = ["docker.io/library/app:index", "ghcr.io/team/child:1"]
    assert await broken_by(cache.content, layer) == broken
    assert await broken_by(cache.content, Digest(child.digest)) == broken
    assert await broken_by(cache.content, Digest(INDEX.digest)) == broken[:1]
    assert await broken_by(cache.content, Digest(IMAGE.layers[0])) == [
        "docker.io/library/app:image"
    ]
    assert await broken_by(cache.content, sha256(b"nobody's")) == []
    await cache.index.drop_blobs([layer])
    assert await broken_by(cache.content, layer) == broken, "also when it is gone already"
    await cache.index.drop_blobs([Digest(INDEX.digest)])
    assert await broken_by(cache.content, layer) == broken[1:], (
        "what is not held is broken without that"
    )
