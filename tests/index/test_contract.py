"""The contract of every index."""

from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from proxy.core.manifests import OCI_INDEX
from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.records import BLOCK, BlobRecord, Child, Usage
from proxy.index import HISTORY_LIMIT, TaggedImage, Weight
from tests.fakes.clock import Clock
from tests.index.indexes import (
    FILES,
    LATEST,
    NGINX,
    OTHER,
    Files,
    all_tags,
    blob,
    digest,
    everything,
    listing,
    manifest,
    opened,
    order,
    tagged,
)

HUGE = 1 << 64


@pytest.fixture(params=FILES)
async def files(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[Files]:
    found = FILES[request.param](tmp_path / "index", clock)
    yield found
    await found.close()


def digests(*numbers: int) -> list[Digest]:
    return [digest(number) for number in numbers]


def is_before(found: list[Digest], first: int, *then: int) -> bool:
    return all(found.index(digest(first)) < found.index(digest(other)) for other in then)


# Tags


async def test_a_tag_is_remembered_over_a_restart(files: Files) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, tagged(1, 100.0))
    for _ in range(2):
        assert await index.tag(NGINX, LATEST) == tagged(1, 100.0)
        assert index.peek_tag(NGINX, LATEST) == tagged(1, 100.0)
        assert await index.tag(OTHER, LATEST) is None
        assert index.peek_tag(OTHER, LATEST) is None
        assert await index.tags(NGINX) == [LATEST]
        index = await files.open()


async def test_tags_are_sorted_and_per_repository(files: Files) -> None:
    index = await files.open()
    for tag in ("b", "a", "B"):
        await index.set_tag(NGINX, Tag(tag), tagged(1, 1.0))
        assert Tag(tag) in await index.tags(NGINX)
    await index.set_tag(OTHER, Tag("c"), tagged(1, 1.0))
    assert await index.tags(NGINX) == ["B", "a", "b"]
    await index.set_tag(NGINX, Tag("a"), None)
    assert await index.tags(NGINX) == ["B", "b"]


async def test_history_keeps_every_digest_with_first_and_last_sight(files: Files) -> None:
    index = await files.open()
    for number, at in ((1, 10.0), (1, 20.0), (2, 30.0), (1, 40.0)):
        await index.set_tag(NGINX, LATEST, tagged(number, at))
        assert (await index.history(NGINX, LATEST))[-1].last_seen == at
    await index.set_tag(NGINX, LATEST, None)
    async for index in opened(files):
        assert await index.tag(NGINX, LATEST) is None
        assert await index.tags(NGINX) == []
        seen = [
            (entry.digest, entry.first_seen, entry.last_seen)
            for entry in await index.history(NGINX, LATEST)
        ]
        assert seen == [(digest(1), 10.0, 20.0), (digest(2), 30.0, 30.0), (digest(1), 40.0, 40.0)]


async def test_history_is_bounded_and_keeps_the_latest(files: Files) -> None:
    index = await files.open()
    for number in range(HISTORY_LIMIT + 5):
        await index.set_tag(NGINX, LATEST, tagged(number, float(number)))
    await index.set_tag(OTHER, LATEST, tagged(1, 1.0))
    history = await index.history(NGINX, LATEST)
    assert len(history) == HISTORY_LIMIT
    assert history[-1].digest == digest(HISTORY_LIMIT + 4)
    assert len(await index.history(OTHER, LATEST)) == 1


async def test_all_tags_come_in_pages_with_what_is_known_of_them(files: Files) -> None:
    index = await files.open()
    for number, target in enumerate((NGINX, OTHER, Target("docker.io", Repo("a/b")))):
        for tag in ("c", "a", "gone"):
            await index.set_tag(target, Tag(tag), tagged(number, 1.0))
        await index.set_tag(target, Tag("gone"), None)
    await index.set_blob(manifest(1))
    await index.link(OTHER, [digest(1)])
    async for index in opened(files):
        rows = await all_tags(index)
        assert rows == [
            (target, tag, digest(number))
            for target, number in ((("docker.io", "a/b"), 2), (NGINX, 0), (OTHER, 1))
            for tag in ("a", "c")
        ]
        assert await all_tags(index, limit=100) == rows
        found = await index.search((OTHER, Tag("a")), 10)
        assert found == [TaggedImage(OTHER, Tag("c"), tagged(1, 1.0), manifest(1), is_linked=True)]
        found = await index.search(None, 1)
        assert (found[0].held, found[0].is_linked) == (None, False)
        assert await index.repositories() == sorted(
            [NGINX, OTHER, Target("docker.io", Repo("a/b"))]
        )


async def test_the_tags_of_a_digest_come_in_pages(files: Files) -> None:
    index = await files.open()
    for target in (NGINX, OTHER):
        for number in range(4):
            await index.set_tag(target, Tag(f"v{number}"), tagged(number % 2, 1.0))
    rows = await everything(partial(index.search, limit=1, digest=digest(1)), lambda row: row[:2])
    assert [row[:2] for row in rows] == [
        (target, tag) for target in (NGINX, OTHER) for tag in ("v1", "v3")
    ]


async def test_t68_a_tag_that_is_forgotten_leaves_no_history(files: Files) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, tagged(1, 10.0))
    await index.set_tag(OTHER, LATEST, tagged(2, 10.0))
    assert await index.tags(NGINX) == [LATEST]
    await index.forget_tag(NGINX, LATEST)
    for _ in range(2):
        assert await index.tag(NGINX, LATEST) is None
        assert await index.tags(NGINX) == []
        assert await index.history(NGINX, LATEST) == ()
        assert await index.repositories() == [OTHER]
        index = await files.open()


# Links


async def test_links_belong_to_one_repository(files: Files) -> None:
    index = await files.open()
    assert not await index.linked(OTHER, digest(2))
    await index.link(NGINX, digests(1, 2))
    await index.link(OTHER, digests(2))
    async for index in opened(files):
        assert await index.linked(NGINX, digest(1))
        assert not await index.linked(OTHER, digest(1))
        assert await index.linked(NGINX, digest(2))
        assert await index.linked(OTHER, digest(2))
        assert not await index.linked(NGINX, digest(3))
        assert index.peek_linked(NGINX, digest(1))
        assert not index.peek_linked(OTHER, digest(1))


async def test_holders_are_all_that_hold_it(files: Files, clock: Clock) -> None:
    index = await files.open()
    assert await index.holders(digest(1)) == []
    for target in (OTHER, NGINX, OTHER):
        await index.link(target, digests(1))
        clock.advance(1)
    async for index in opened(files):
        assert await index.holders(digest(1)) == [OTHER, NGINX]
        assert await index.holders(digest(2)) == []


async def test_holders_are_not_mixed_up(files: Files) -> None:
    def holders(number: int) -> list[Target]:
        repo = Target("docker.io", Repo(f"library/app{number}"))
        return [repo] if number % 3 else [repo, NGINX]

    index = await files.open()
    for number in range(60):
        for target in holders(number):
            await index.link(target, [digest(number)])
    async for index in opened(files):
        for number in range(60):
            assert set(await index.holders(digest(number))) == set(holders(number))
            assert await index.linked(NGINX, digest(number)) == (number % 3 == 0)


async def test_t68_a_repository_is_unlinked_from_what_it_holds(files: Files) -> None:
    index = await files.open()
    await index.link(NGINX, digests(1, 2))
    await index.link(OTHER, digests(2, 3))
    assert await index.linked_to(lambda target: target == NGINX) == {NGINX: {*digests(1, 2)}}
    assert await index.holders(digest(2)) == [NGINX, OTHER]
    await index.unlink(NGINX, digests(1, 2, 3))
    for _ in range(2):
        assert await index.linked_to(lambda _: True) == {OTHER: {*digests(2, 3)}}
        assert [await index.linked(NGINX, one) for one in digests(1, 2, 3)] == [False] * 3
        assert await index.holders(digest(2)) == [OTHER]
        index = await files.open()


# Referrers


def entry(number: int, **more: object) -> dict[str, object]:
    return {"digest": digest(number), "size": 1, **more}


async def test_referrers_are_remembered_the_newest_last(files: Files) -> None:
    index = await files.open()
    assert await index.referrers(NGINX, digest(1)) == ()
    for number in (2, 3):
        await index.add_referrer(NGINX, digest(1), entry(number))
    await index.add_referrer(NGINX, digest(1), entry(2, artifactType="new"))
    async for index in opened(files):
        found = await index.referrers(NGINX, digest(1))
        assert found == (entry(3), entry(2, artifactType="new"))
        assert await index.referrers(OTHER, digest(1)) == ()


async def test_t68_the_referrers_of_what_is_unlinked_are_forgotten(files: Files) -> None:
    index = await files.open()
    for target in (NGINX, OTHER):
        for subject, number in ((1, 5), (1, 6), (2, 6)):
            await index.add_referrer(target, digest(subject), entry(number))
    await index.unlink(NGINX, digests(2, 5))
    assert await index.referrers(NGINX, digest(1)) == (entry(6),)
    assert await index.referrers(NGINX, digest(2)) == ()
    assert await index.referrers(OTHER, digest(1)) == (entry(5), entry(6))


# Held content


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
    await index.loosen_files(digests(1, 2, 3))
    async for index in opened(files):
        assert set(await index.loose_files()) == set(digests(1, 2, 3))
    await index.set_blob(blob(1))
    await index.set_blob(blob(4))
    assert set(await index.loose_files()) == set(digests(2, 3))
    await index.drop_blobs(digests(4, 5))
    async for index in opened(files):
        assert set(await index.loose_files()) == set(digests(2, 3, 4, 5)), "rows go before files"
    await index.forget_files(digests(2, 4))
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


# The order of last use


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


# Names for index.json


async def test_manifests_without_a_name(files: Files) -> None:
    index = await files.open()
    for number, below in (
        (1, (5,)),
        (2, (5,)),
        (3, (2,)),
        (4, (5,)),
        (6, (5,)),
        (7, ()),
        (8, (5,)),
    ):
        await index.set_blob(manifest(number), listing(*below))
        if number != 4:
            await index.link(OTHER, digests(number))
    await index.set_tag(OTHER, LATEST, tagged(6, 1.0))
    await index.set_tag(NGINX, LATEST, tagged(8, 1.0))  # a mere claim
    async for index in opened(files):
        rows = await everything(partial(index.untagged, limit=1), lambda row: row[1].digest)
        assert {record.digest for _, record in rows} == {*digests(1, 3, 8)}
        assert {target for target, _ in rows} == {OTHER}


async def test_what_is_held_below_a_manifest_is_weighed_once(files: Files) -> None:
    index = await files.open()
    await index.set_blob(replace(manifest(1), media_type=OCI_INDEX), listing(2, 3))
    for number, below in ((2, (5, 6)), (3, (5, 7))):
        await index.set_blob(manifest(number), listing(*below))
    await index.set_blob(manifest(4), None)
    await index.set_blob(blob(5, size=5000), ())
    await index.set_blob(blob(6, size=1), ())
    async for index in opened(files):
        assert await index.weights(digests(1, 2, 3, 4, 6, 9)) == {
            digest(1): Weight(6 * BLOCK, 0),
            digest(2): Weight(4 * BLOCK, 0),
            digest(3): Weight(3 * BLOCK, 1),
            digest(4): Weight(BLOCK, 1),
            digest(6): Weight(BLOCK, 0),
        }
        found = await index.listings(digests(5, 6, 9))
        assert found == dict(zip(digests(5, 6, 9), [2, 1, 0], strict=True))


async def test_a_tree_has_all_that_a_manifest_lists_held_or_not(files: Files) -> None:
    index = await files.open()
    for number, below in ((1, (2, 3)), (2, (5, 6)), (3, (5, 7))):
        await index.set_blob(manifest(number), listing(*below))
    await index.set_blob(blob(5, size=5000), ())
    async for index in opened(files):
        assert await index.trees(digests(1, 3, 9)) == {
            digest(1): dict(zip(digests(1, 2, 3, 5, 6, 7), [4096] * 3 + [8192, 0, 0], strict=True)),
            digest(3): dict(zip(digests(3, 5, 7), [4096, 8192, 0], strict=True)),
            digest(9): {digest(9): 0},
        }


async def test_manifests_that_list_each_other_have_a_tree_and_a_weight(files: Files) -> None:
    index = await files.open()
    for number, below in ((1, 2), (2, 1)):
        await index.set_blob(replace(manifest(number), media_type=OCI_INDEX), listing(below))
    assert (await index.trees(digests(1)))[digest(1)].keys() == {*digests(1, 2)}
    assert await index.weights(digests(1)) == {digest(1): Weight(2 * BLOCK, 1)}


# Notes


async def test_notes_are_json_values_and_outlive_a_restart(files: Files) -> None:
    index = await files.open()
    assert await index.note("a") is None
    for value in ({"x": [1, None, "é"]}, [], 0, "", 1.5):
        await index.set_note("a", value)
        assert await index.note("a") == value
    await index.set_note("b", True)
    async for index in opened(files):
        assert await index.note("a") == 1.5
        assert await index.note("b") is True


# The rest


async def test_the_revision_grows_with_tags_and_manifests(files: Files) -> None:
    index = await files.open()
    before = index.revision

    def has_grown() -> bool:
        nonlocal before
        before, last = index.revision, before
        return before > last

    await index.set_blob(blob(1))
    await index.set_tag(NGINX, LATEST, tagged(1, 1.0))
    assert has_grown()
    await index.set_tag(NGINX, LATEST, tagged(1, 2.0))
    assert not has_grown(), "the tag points where it did"
    await index.set_blob(manifest(2), listing(1))
    assert has_grown()
    await index.link(NGINX, digests(2))
    assert has_grown()
    await index.link(NGINX, digests(1, 2))
    assert not has_grown()
    await index.unlink(NGINX, digests(2))
    assert has_grown()
    await index.drop_blobs(digests(2))
    assert has_grown()
    await index.set_tag(NGINX, LATEST, None)
    assert has_grown()
    await index.set_tag(NGINX, LATEST, None)
    assert not has_grown()


async def test_what_only_a_dropped_manifest_listed_is_pruned(files: Files, clock: Clock) -> None:
    index = await files.open()
    await index.set_blob(manifest(1), listing(9))
    await index.link(NGINX, digests(9))
    assert await index.prune(clock() + 1) == 0
    await index.drop_blobs(digests(1))
    assert await index.prune(clock() + 1) == 1
    assert not await index.linked(NGINX, digest(9))


async def test_pruning_forgets_what_nothing_holds_and_what_was_not_seen_lately(
    files: Files, clock: Clock
) -> None:
    index = await files.open()
    old, dropped, new = Tag("old"), Tag("dropped"), Tag("new")
    start = clock()
    await index.set_blob(manifest(1), listing(2))
    for tag, number in ((Tag("held"), 1), (old, 8), (dropped, 8)):
        await index.set_tag(NGINX, tag, tagged(number, start))
    await index.set_tag(NGINX, dropped, None)
    for subject in (1, 8):
        await index.add_referrer(NGINX, digest(subject), entry(3))
    await index.link(NGINX, digests(1, 2, 8))
    assert await index.holders(digest(8)) == [NGINX]
    clock.advance(100)
    await index.set_tag(NGINX, new, tagged(9, clock()))
    await index.link(NGINX, digests(9))
    assert await index.prune(start + 50) == 4
    async for index in opened(files):
        assert await index.tags(NGINX) == ["held", "new"]
        assert await index.history(NGINX, old) == await index.history(NGINX, dropped) == ()
        assert await index.referrers(NGINX, digest(1)) == (entry(3),)
        assert await index.referrers(NGINX, digest(8)) == ()
        assert [await index.linked(NGINX, one) for one in digests(1, 2, 8, 9)] == [
            True,
            True,
            False,
            True,
        ]
        assert await index.holders(digest(8)) == []
        assert await index.prune(start + 50) == 0
