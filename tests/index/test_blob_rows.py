"""Held content and the order of its last use, as every index must know them."""

from functools import partial

import pytest

from proxy.core.names import Digest
from proxy.core.records import BLOCK, BlobRecord, Child, Usage
from tests.fakes.clock import Clock
from tests.index.indexes import (
    NGINX,
    Files,
    blob,
    digest,
    digests,
    everything,
    listing,
    manifest,
    opened,
    order,
)

HUGE = 1 << 64


def is_before(found: list[Digest], first: int, *then: int) -> bool:
    return all(found.index(digest(first)) < found.index(digest(other)) for other in then)


async def test_usage_counts_blocks(files: Files) -> None:
    index = await files.open()
    await index.set_blob(blob(1))
    await index.set_blob(BlobRecord(digest(2), 4097, "application/x", 1.0))
    await index.set_blob(BlobRecord(digest(2), 4097, "application/x", 2.0))
    await index.set_blob(blob(3, 2.0, size=0))
    async for index in opened(files):
        assert index.usage() == Usage(3, 3 * BLOCK)
        assert await index.blob(digest(2)) == BlobRecord(digest(2), 4097, "application/x", 2.0)
    await index.set_blob(blob(1, size=5 * BLOCK))
    await index.drop_blobs(digests(2, 3, 9, 2))
    async for index in opened(files):
        assert index.usage() == Usage(1, 5 * BLOCK)


async def test_dropped_content_is_gone_and_who_holds_it_upstream_stays_known(files: Files) -> None:
    index = await files.open()
    await index.set_blob(blob(1))
    await index.link(NGINX, digests(1))
    await index.drop_blobs(digests(1, 9))
    async for index in opened(files):
        assert await index.blob(digest(1)) is None
        assert index.peek_blob(digest(1)) is None
        assert await index.linked(NGINX, digest(1))
        assert not await index.linked(NGINX, digest(9))
        assert index.usage() == Usage(0, 0)
    await index.set_blob(blob(1, 3.0))
    assert await index.blob(digest(1)) == blob(1, 3.0)


async def test_a_file_is_loose_until_it_has_a_row_or_is_forgotten(files: Files) -> None:
    index = await files.open()
    await index.add_loose_files(digests(1, 2, 3))
    async for index in opened(files):
        assert set(await index.loose_files()) == set(digests(1, 2, 3))
    await index.set_blob(blob(1))
    await index.set_blob(blob(4))
    assert set(await index.loose_files()) == set(digests(2, 3))
    await index.drop_blobs(digests(4, 5))
    async for index in opened(files):
        assert set(await index.loose_files()) == set(digests(2, 3, 4, 5)), "rows go before files"
    await index.delete_loose_files(digests(2, 4))
    async for index in opened(files):
        assert set(await index.loose_files()) == set(digests(3, 5))


async def test_what_is_public_is_known_after_a_restart_and_after_a_use(files: Files) -> None:
    index = await files.open()
    for number in (1, 2):
        await index.set_blob(BlobRecord(digest(number), 5, "x/y", 1.0, number == 1))
    for _ in range(2):
        index.touch(digest(1))
        await order(index)
        for number in (1, 2):
            record = await index.blob(digest(number))
            assert record is not None
            assert record.is_public is (number == 1)
        index = await files.open()
    await index.drop_blobs(digests(1))
    await index.set_blob(BlobRecord(digest(1), 5, "x/y", 1.0))
    assert await index.blob(digest(1)) == BlobRecord(digest(1), 5, "x/y", 1.0)


async def test_many_records_are_read_at_once(files: Files) -> None:
    index = await files.open()
    for number in range(0, 1200, 2):
        await index.set_blob(blob(number))
    async for index in opened(files):
        assert await index.blob(digest(5)) is None
        found = await index.records(digests(*range(1201)))
        assert found == {digest(number): blob(number) for number in range(0, 1200, 2)}
        assert await index.records([]) == {}


async def test_held_content_comes_in_pages_in_the_order_of_digests(files: Files) -> None:
    index = await files.open()
    long = Digest("sha512:" + "ab" * 64)
    for number in range(9):
        await index.set_blob(blob(number))
    await index.set_blob(BlobRecord(long, 1, None, 1.0))
    async for index in opened(files):
        rows = await everything(partial(index.blobs, limit=2), lambda row: row.digest)
        found = [row.digest for row in rows]
        assert found == sorted(found, key=lambda one: bytes.fromhex(one.partition(":")[2]))
        assert {*found} == {*digests(*range(9)), long}


async def test_what_a_manifest_lists_is_known_from_both_ends(files: Files) -> None:
    index = await files.open()
    listed = (Child(digest(3), 30), Child(digest(2), 20))
    await index.set_blob(blob(2, size=20))
    await index.set_blob(manifest(1), listed)
    async for index in opened(files):
        assert await index.children(digest(1)) == listed
        assert await index.children(digest(2)) == await index.children(digest(9)) == ()
        assert await index.parents(digest(2)) == await index.parents(digest(3)) == digests(1)
        assert await index.parents(digest(1)) == []
        assert await index.blob(digest(3)) is None
        assert await index.incomplete(None, 10) == []
    await index.drop_blobs(digests(1))
    async for index in opened(files):
        assert await index.parents(digest(3)) == []
        assert await index.children(digest(1)) == ()


async def test_a_manifest_that_is_held_anew_lists_what_it_says_now(files: Files) -> None:
    index = await files.open()
    await index.set_blob(manifest(1), listing(2, 3))
    await index.set_blob(manifest(1), [*listing(3, 4), *listing(3, 1)])
    async for index in opened(files):
        assert await index.children(digest(1)) == listing(3, 4), "each once, and not itself"
        assert await index.parents(digest(2)) == []
        assert await index.parents(digest(4)) == digests(1)


async def test_what_a_manifest_lists_may_be_unknown(files: Files) -> None:
    index = await files.open()
    for number in (1, 2, 3):
        await index.set_blob(manifest(number), None)
    await index.set_blob(blob(4), None)
    async for index in opened(files):
        assert await index.children(digest(1)) is None
        assert await index.children(digest(4)) == (), "a blob lists nothing"
        pages = await everything(partial(index.incomplete, limit=2), lambda one: one)
        assert set(pages) == {*digests(1, 2, 3)}
        index.touch(digest(1))
        await order(index)
        assert await index.children(digest(1)) is None
    await index.set_blob(manifest(1), listing(4))
    await index.set_blob(manifest(2), ())
    async for index in opened(files):
        assert await index.incomplete(None, 10) == digests(3)
        assert await index.children(digest(2)) == ()


async def test_the_size_that_counts_is_that_of_what_is_held(files: Files) -> None:
    index = await files.open()
    await index.set_blob(blob(1, size=7))
    await index.set_blob(manifest(9), [Child(digest(1), 99), Child(digest(2), 99)])
    await index.set_blob(manifest(8), [Child(digest(2), 99)])
    assert await index.children(digest(9)) == (Child(digest(1), 7), Child(digest(2), 99))
    await index.set_blob(blob(2, size=5))
    async for index in opened(files):
        assert await index.children(digest(9)) == (Child(digest(1), 7), Child(digest(2), 5))
        assert await index.children(digest(8)) == (Child(digest(2), 5),)


@pytest.mark.parametrize("first", [1, 2])
async def test_of_several_claims_about_a_size_the_smallest_counts(files: Files, first: int) -> None:
    """Anybody may claim any size. An absurd one must not make another's image too large to pin."""
    index = await files.open()
    claims = {1: 1000, 2: 1 << 60}
    for number in (first, 3 - first):
        await index.set_blob(manifest(number), [Child(digest(5), claims[number])])
    async for index in opened(files):
        for number in claims:
            assert await index.children(digest(number)) == (Child(digest(5), 1000),)


async def test_t44_sizes_out_of_bounds_change_nothing(files: Files) -> None:
    index = await files.open()
    await index.set_blob(blob(1, size=5))
    for children in ([Child(digest(2), 5), Child(digest(3), HUGE)], [Child(digest(2), -1)]):
        with pytest.raises(ValueError, match="out of bounds"):
            await index.set_blob(manifest(1, 2.0), children)
    with pytest.raises(ValueError, match="out of bounds"):
        await index.set_blob(blob(2, size=-1))
    assert index.usage() == Usage(1, BLOCK)
    assert await order(index) == digests(1)
    assert await index.blob(digest(1)) == blob(1, size=5)


async def test_recency_counts_every_use_and_outlives_a_restart(files: Files, clock: Clock) -> None:
    index = await files.open()
    for number in range(4):
        await index.set_blob(blob(number, clock()))
        clock.advance(1)
    index.touch(digest(0))
    clock.advance(1)
    index.touch(digest(2))
    index.touch(digest(99))
    async for index in opened(files):
        assert await order(index) == digests(1, 3, 0, 2)
        assert await order(index, limit=100) == digests(1, 3, 0, 2)
    record = await index.blob(digest(2))
    assert record is not None
    assert record.used_at == clock()


async def test_uses_in_one_instant_have_an_order(files: Files, clock: Clock) -> None:
    index = await files.open()
    for number in range(4):
        await index.set_blob(blob(number, clock()))
    assert await order(index) == digests(0, 1, 2, 3)
    for number in (2, 0, 3, 0):
        index.touch(digest(number))
    assert await order(index) == digests(1, 2, 3, 0)


async def test_a_use_before_the_last_one_takes_nothing_back(files: Files, clock: Clock) -> None:
    index = await files.open()
    await index.set_blob(blob(1, clock() + 100))
    index.touch(digest(1))
    await order(index)
    record = await index.blob(digest(1))
    assert record is not None
    assert record.used_at == clock() + 100


async def test_a_manifest_is_colder_than_what_it_lists(files: Files, clock: Clock) -> None:
    index = await files.open()
    for number in (2, 3, 4):
        await index.set_blob(blob(number, clock()))
    clock.advance(1)
    await index.set_blob(manifest(1, clock()), listing(2))
    async for index in opened(files):
        assert await order(index) == digests(3, 4, 1, 2)
    child = await index.blob(digest(2))
    assert child is not None
    assert clock() < child.used_at < clock() + 0.1


async def test_what_comes_behind_the_manifest_that_lists_it_is_warmer(
    files: Files, clock: Clock
) -> None:
    index = await files.open()
    await index.set_blob(manifest(1, clock()), listing(2, 3))
    await index.set_blob(manifest(2, clock() - 100), listing(3))
    await index.set_blob(blob(3, clock() - 200))
    async for index in opened(files):
        assert await order(index) == digests(1, 2, 3)


async def test_what_two_manifests_of_an_index_share_is_warmer_than_both(
    files: Files, clock: Clock
) -> None:
    index = await files.open()
    for number in (1, 2, 3, 9):
        await index.set_blob(blob(number, clock()))
    await index.set_blob(manifest(10, clock()), listing(1, 2))
    await index.set_blob(manifest(11, clock()), listing(2, 3))
    await index.set_blob(manifest(12, clock()), listing(10, 11))
    clock.advance(5)
    index.touch(digest(12))
    async for index in opened(files):
        found = await order(index)
        assert found[:2] == digests(9, 12)
        assert is_before(found, 10, 1, 2)
        assert is_before(found, 11, 2, 3)


async def test_a_use_of_one_image_leaves_another_colder(files: Files, clock: Clock) -> None:
    index = await files.open()
    for root, below in ((1, (2, 3)), (4, (3, 5))):
        for number in below:
            await index.set_blob(blob(number, clock()))
        await index.set_blob(manifest(root, clock()), listing(*below))
        clock.advance(1)
    index.touch(digest(1))
    async for index in opened(files):
        found = await order(index)
        assert found[:2] == digests(4, 5)
        assert is_before(found, 1, 2, 3)


async def test_manifests_that_list_each_other_end(files: Files, clock: Clock) -> None:
    index = await files.open()
    await index.set_blob(manifest(1, clock()), listing(2))
    await index.set_blob(manifest(2, clock()), listing(1))
    await index.set_blob(manifest(3, clock()), listing(3))
    clock.advance(1)
    for number in (1, 3):
        index.touch(digest(number))
    assert set(await order(index)) == {*digests(1, 2, 3)}
    assert await index.children(digest(3)) == ()
    await index.drop_blobs(digests(1, 2, 3))
    assert (await order(index), index.usage()) == ([], Usage(0, 0))


async def test_a_use_shows_in_the_records_of_all_that_is_used(files: Files, clock: Clock) -> None:
    index = await files.open()
    for number in (2, 3):
        await index.set_blob(blob(number, clock()))
    await index.set_blob(manifest(1, clock()), listing(2))
    await index.set_blob(manifest(4, clock()), listing(1, 3))
    await index.records(digests(1, 2, 3, 4))
    clock.advance(5)
    index.touch(digest(4))
    page = await index.coldest(None, 10)
    assert await index.records(digests(1, 2, 3, 4)) == {one.digest: one for _, one in page}
    assert all(one.used_at >= clock() for _, one in page)


async def test_dropped_content_is_not_used(files: Files, clock: Clock) -> None:
    index = await files.open()
    await index.set_blob(blob(1, clock()))
    await index.set_blob(blob(2, clock()))
    clock.advance(5)
    index.touch(digest(1))
    await index.drop_blobs(digests(1))
    await index.set_blob(blob(1, clock() - 100))
    assert await order(index) == digests(1, 2)
