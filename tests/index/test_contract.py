"""What every index must do; each backend is put through it."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.core.names import Tag
from proxy.core.records import BlobRecord, Child, ReferrersRecord, Usage
from proxy.index.tables import HISTORY_LIMIT
from tests.fakes.clock import Clock
from tests.index.backends import BACKENDS, LATEST, NGINX, OTHER, Reopening, digest, record


@pytest.fixture(params=BACKENDS)
async def files(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[Reopening]:
    reopening = Reopening(BACKENDS[request.param], tmp_path / "index", clock)
    yield reopening
    await reopening.close()


async def test_a_tag_is_remembered_over_a_restart(files: Reopening) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, record(1, 100.0))
    assert await index.tag(NGINX, LATEST) == record(1, 100.0)
    assert await index.tag(OTHER, LATEST) is None
    index = await files.open()
    assert await index.tag(NGINX, LATEST) == record(1, 100.0)
    await index.ready()
    assert await index.tag(NGINX, LATEST) == record(1, 100.0)
    assert await index.tags(NGINX) == [LATEST]


async def test_tags_are_sorted_and_per_repository(files: Reopening) -> None:
    index = await files.open()
    for tag in ("b", "a", "B"):
        await index.set_tag(NGINX, Tag(tag), record(1, 1.0))
    await index.set_tag(OTHER, Tag("c"), record(1, 1.0))
    assert await index.tags(NGINX) == ["B", "a", "b"]


async def test_history_keeps_every_digest_with_first_and_last_sight(files: Reopening) -> None:
    index = await files.open()
    for number, at in ((1, 10.0), (1, 20.0), (2, 30.0), (1, 40.0)):
        await index.set_tag(NGINX, LATEST, record(number, at))
    await index.drop_tag(NGINX, LATEST)
    index = await files.open()
    assert await index.tag(NGINX, LATEST) is None
    assert await index.tags(NGINX) == []
    seen = [
        (sighting.digest, sighting.first_seen, sighting.last_seen)
        for sighting in await index.history(NGINX, LATEST)
    ]
    assert seen == [(digest(1), 10.0, 20.0), (digest(2), 30.0, 30.0), (digest(1), 40.0, 40.0)]


async def test_history_is_bounded_and_keeps_the_latest(files: Reopening) -> None:
    index = await files.open()
    for number in range(HISTORY_LIMIT + 5):
        await index.set_tag(NGINX, LATEST, record(number, float(number)))
    history = await index.history(NGINX, LATEST)
    assert len(history) == HISTORY_LIMIT
    assert history[-1].digest == digest(HISTORY_LIMIT + 4)


async def test_links_belong_to_one_repository(files: Reopening) -> None:
    index = await files.open()
    await index.link(NGINX, [digest(1), digest(2)])
    await index.link(OTHER, [digest(2)])
    for reopened in (False, True):
        index = await files.open() if reopened else index
        assert await index.linked(NGINX, digest(1))
        assert not await index.linked(OTHER, digest(1))
        assert await index.linked(NGINX, digest(2))
        assert await index.linked(OTHER, digest(2))
        assert not await index.linked(NGINX, digest(3))


async def test_dropped_content_is_gone_and_who_holds_it_upstream_stays_known(
    files: Reopening,
) -> None:
    index = await files.open()
    await index.set_blob(BlobRecord(digest(1), 5, None, 1.0))
    await index.link(NGINX, [digest(1)])
    await index.drop_blobs([digest(1), digest(9)])
    for reopened in (False, True):
        index = await files.open() if reopened else index
        assert await index.blob(digest(1)) is None
        assert await index.linked(NGINX, digest(1))
        assert not await index.linked(NGINX, digest(9))
    await index.ready()
    assert index.usage() == Usage(0, 0)


async def test_referrers_are_remembered(files: Reopening) -> None:
    index = await files.open()
    assert await index.referrers(NGINX, digest(1)) == ReferrersRecord((), None)
    await index.add_referrer(NGINX, digest(1), {"digest": digest(2), "size": 1})
    await index.add_referrer(NGINX, digest(1), {"digest": digest(2), "size": 1})
    held = ReferrersRecord(({"digest": digest(2), "size": 1},), None)
    assert await index.referrers(NGINX, digest(1)) == held
    assert await index.referrers(OTHER, digest(1)) == ReferrersRecord((), None)
    told = ReferrersRecord(({"digest": digest(3), "size": 1},), 100.0)
    await index.set_referrers(NGINX, digest(1), told)
    index = await files.open()
    both = ReferrersRecord((*told.entries, *held.entries), 100.0)
    assert await index.referrers(NGINX, digest(1)) == both


async def test_usage_counts_blocks(files: Reopening) -> None:
    index = await files.open()
    await index.set_blob(BlobRecord(digest(1), 1, None, 1.0))
    await index.set_blob(BlobRecord(digest(2), 4097, "application/x", 1.0))
    await index.set_blob(BlobRecord(digest(2), 4097, "application/x", 2.0))
    await index.set_blob(BlobRecord(digest(3), 0, None, 2.0))
    assert index.usage() == Usage(3, 3 * 4096)
    index = await files.open()
    await index.ready()
    assert index.usage() == Usage(3, 3 * 4096)
    assert await index.blob(digest(2)) == BlobRecord(digest(2), 4097, "application/x", 2.0)


async def test_what_is_public_is_known_after_a_restart_and_after_a_use(
    files: Reopening, clock: Clock
) -> None:
    index = await files.open()
    for number, is_public in ((1, True), (2, False)):
        await index.set_blob(BlobRecord(digest(number), 5, "x/y", 1.0, is_public))
    for _ in range(2):
        index.touch(digest(1))
        await index.settle()
        for number, is_public in ((1, True), (2, False)):
            record = index.held(digest(number))
            assert record is not None
            assert record.is_public is is_public
        index = await files.open()
        await index.ready()
    await index.drop_blobs([digest(1)])
    await index.set_blob(BlobRecord(digest(1), 5, "x/y", 1.0))
    assert await index.blob(digest(1)) == BlobRecord(digest(1), 5, "x/y", 1.0)


async def test_recency_counts_every_use_and_outlives_a_restart(
    files: Reopening, clock: Clock
) -> None:
    index = await files.open()
    for number in range(4):
        await index.set_blob(BlobRecord(digest(number), 1, None, clock()))
        clock.advance(1)
    index.touch(digest(0))
    clock.advance(1)
    index.touch(digest(2))
    index.touch(digest(99))
    await index.settle()
    expected = [digest(1), digest(3), digest(0), digest(2)]
    assert [blob.digest for blob in index.coldest()] == expected
    index = await files.open()
    await index.ready()
    assert [blob.digest for blob in index.coldest()] == expected


async def test_notes_are_json_values_and_outlive_a_restart(files: Reopening) -> None:
    index = await files.open()
    assert await index.note("a") is None
    for value in ({"x": [1, None, "é"]}, [], 0, "", 1.5):
        await index.set_note("a", value)
        assert await index.note("a") == value
    await index.set_note("b", True)
    index = await files.open()
    assert await index.note("a") == 1.5
    assert await index.note("b") is True


async def test_what_a_manifest_lists_is_known_from_both_ends(files: Reopening) -> None:
    index = await files.open()
    listed = (Child(digest(2), 20), Child(digest(3), 30))
    await index.set_blob(BlobRecord(digest(2), 20, None, 1.0))
    await index.set_blob(BlobRecord(digest(1), 10, "x/y", 1.0), listed)
    for reopened in (False, True):
        index = await files.open() if reopened else index
        await index.ready()
        assert index.is_ready
        assert index.children(digest(1)) == listed
        assert index.children(digest(2)) == index.children(digest(9)) == ()
        assert index.parents(digest(2)) == index.parents(digest(3)) == [digest(1)]
        assert index.parents(digest(1)) == []
        assert list(index.manifests()) == [digest(1)]
        assert index.is_listed(digest(3))
        assert not index.is_listed(digest(1))
        assert index.incomplete() == []
        assert index.held(digest(1)) == BlobRecord(digest(1), 10, "x/y", 1.0)
        assert index.held(digest(3)) is None
    await index.drop_blobs([digest(1)])
    assert not index.is_listed(digest(3))
    assert list(index.manifests()) == []


async def test_a_manifest_is_colder_than_what_it_lists(files: Reopening, clock: Clock) -> None:
    index = await files.open()
    for number in (2, 3, 4):
        await index.set_blob(BlobRecord(digest(number), 1, None, clock()))
    clock.advance(1)
    await index.set_blob(BlobRecord(digest(1), 1, "x/y", clock()), [Child(digest(2), 1)])
    clock.advance(1)
    for reopened in (False, True):
        index = await files.open() if reopened else index
        await index.ready()
        await index.settle()
        order = [blob.digest for blob in index.coldest()]
        assert set(order[:2]) == {digest(3), digest(4)}
        assert order[2:] == [digest(1), digest(2)]
    index.touch(digest(3))
    index.defer(digest(1))
    await index.settle()
    assert [blob.digest for blob in index.coldest()] == [digest(n) for n in (4, 1, 2, 3)]


async def test_shelves_and_marks(files: Reopening) -> None:
    index = await files.open()
    for number in range(20):
        await index.set_blob(BlobRecord(digest(number), 1, None, 1.0))
    index = await files.open()
    await index.ready()
    shelves = [held for number in range(256) for held in index.shelf(number)]
    assert shelves == sorted(digest(number) for number in range(20))
    assert index.seen(digest(3))
    assert not index.seen(digest(99))
    assert len(index.unseen()) == 19
    assert index.loaded_bytes == 20 * 4096


async def test_the_revision_grows_with_tags_and_manifests(files: Reopening) -> None:
    index = await files.open()
    await index.ready()
    before = index.revision
    await index.set_blob(BlobRecord(digest(1), 1, None, 1.0))
    await index.set_tag(NGINX, LATEST, record(1, 1.0))
    tagged = index.revision
    assert tagged > before
    await index.set_tag(NGINX, LATEST, record(1, 2.0))
    assert index.revision == tagged, "the tag points where it did"
    await index.set_blob(BlobRecord(digest(2), 1, "x/y", 1.0), [Child(digest(1), 1)])
    held = index.revision
    assert held > tagged
    await index.drop_blobs([digest(2)])
    assert index.revision > held


async def test_all_tags_and_their_repositories(files: Reopening) -> None:
    index = await files.open()
    await index.set_tag(OTHER, Tag("b"), record(2, 1.0))
    await index.set_tag(NGINX, Tag("c"), record(3, 1.0))
    await index.set_tag(NGINX, Tag("a"), record(1, 1.0))
    await index.set_tag(NGINX, Tag("gone"), record(1, 1.0))
    await index.drop_tag(NGINX, Tag("gone"))
    for reopened in (False, True):
        index = await files.open() if reopened else index
        await index.ready()
        rows = [(target, tag, found.descriptor.digest) for target, tag, found in index.tagged()]
        assert rows == [
            (NGINX, "a", digest(1)),
            (NGINX, "c", digest(3)),
            (OTHER, "b", digest(2)),
        ]
        assert sorted(await index.repositories()) == [NGINX, OTHER]
        assert index.pointed(NGINX, Tag("a")) == record(1, 1.0)
        assert index.pointed(NGINX, Tag("gone")) is None


async def test_holders_are_all_that_hold_it(files: Reopening) -> None:
    index = await files.open()
    await index.link(NGINX, [digest(1)])
    await index.link(OTHER, [digest(1)])
    await index.link(NGINX, [digest(1)])
    for reopened in (False, True):
        index = await files.open() if reopened else index
        assert await index.holders(digest(1)) == [NGINX, OTHER]
        assert await index.holders(digest(2)) == []


async def test_pruning_forgets_what_nobody_holds_nor_has_seen_lately(files: Reopening) -> None:
    index = await files.open()
    old, new = Tag("old"), Tag("new")
    await index.set_blob(BlobRecord(digest(1), 1, "x/y", 1.0), [Child(digest(2), 1)])
    for tag, number, at in ((Tag("held"), 1, 1.0), (old, 8, 1.0), (new, 9, 100.0)):
        await index.set_tag(NGINX, tag, record(number, at))
    told = ReferrersRecord(({"digest": digest(3), "size": 1},), 1.0)
    for number in (1, 8):
        await index.set_referrers(NGINX, digest(number), told)
    await index.link(NGINX, [digest(number) for number in (1, 2, 8)])
    index = await files.open()
    await index.prune(50.0)
    for reopened in (False, True):
        index = await files.open() if reopened else index
        assert await index.tags(NGINX) == ["held", "new"]
        assert await index.history(NGINX, old) == ()
        assert await index.referrers(NGINX, digest(1)) == told
        assert await index.referrers(NGINX, digest(8)) == ReferrersRecord((), None)
        assert await index.linked(NGINX, digest(1))
        assert await index.linked(NGINX, digest(2))


async def test_t68_a_tag_that_is_forgotten_leaves_no_history(files: Reopening) -> None:
    index = await files.open()
    await index.set_tag(NGINX, LATEST, record(1, 10.0))
    await index.set_tag(OTHER, LATEST, record(2, 10.0))
    await index.forget_tag(NGINX, LATEST)
    for _ in range(2):
        assert await index.tag(NGINX, LATEST) is None
        assert await index.history(NGINX, LATEST) == ()
        assert await index.repositories() == [OTHER]
        index = await files.open()
        await index.ready()


async def test_t68_a_repository_is_unlinked_from_what_it_holds(files: Reopening) -> None:
    index = await files.open()
    await index.link(NGINX, [digest(1), digest(2)])
    await index.link(OTHER, [digest(2), digest(3)])
    assert await index.linked_to(lambda target: target == NGINX) == {NGINX: {digest(1), digest(2)}}
    await index.unlink(NGINX, [digest(1), digest(2), digest(3)])
    for _ in range(2):
        assert await index.linked_to(lambda _: True) == {OTHER: {digest(2), digest(3)}}
        assert [await index.linked(NGINX, digest(n)) for n in (1, 2, 3)] == [False] * 3
        assert await index.holders(digest(2)) == [OTHER]
        index = await files.open()
        await index.ready()


async def test_t68_the_referrers_of_a_repository_are_forgotten(files: Reopening) -> None:
    index = await files.open()
    entry = {"digest": digest(5), "mediaType": "application/x", "size": 1}
    for target in (NGINX, OTHER):
        await index.set_referrers(target, digest(1), ReferrersRecord((entry,), 10.0))
    await index.forget_referrers(lambda target: target == NGINX)
    assert (await index.referrers(NGINX, digest(1))).entries == ()
    assert (await index.referrers(OTHER, digest(1))).entries == (entry,)
