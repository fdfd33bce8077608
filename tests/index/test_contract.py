"""The contract of every index."""

from proxy.core.names import Tag
from proxy.core.records import ImageSet, TagHistoryEntry
from tests.fakes.clock import Clock
from tests.index.indexes import (
    LATEST,
    NGINX,
    OTHER,
    Files,
    blob,
    digest,
    digests,
    entry,
    listing,
    manifest,
    opened,
    tagged,
)


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
        assert await index.notes(["a", "none", "b"]) == {"a": 1.5, "b": True}
        assert await index.notes([]) == {}


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


async def test_images_are_recorded_together(files: Files) -> None:
    index = await files.open()
    await index.set_blob(manifest(1), listing(2))
    await index.set_tag(NGINX, LATEST, tagged(9, 100.0))
    assert not await index.linked(NGINX, digest(1))
    assert await index.tags(OTHER) == []
    assert await index.holders(digest(1)) == []
    referrer: dict[str, object] = {"digest": digest(4), "size": 1}
    entries = (TagHistoryEntry(digest(8), 10.0, 20.0),)
    revision = index.revision
    await index.add_images(
        ImageSet(
            links={NGINX: digests(1, 2), OTHER: digests(1)},
            referrers=[(NGINX, digest(1), referrer)],
            tags={(NGINX, LATEST): tagged(1, 200.0), (OTHER, LATEST): tagged(1, 50.0)},
            history={(NGINX, LATEST): entries},
            notes={"a": [1], "b": None},
        )
    )
    assert index.revision > revision
    async for index in opened(files):
        assert await index.tag(NGINX, LATEST) == tagged(1, 200.0)
        assert await index.tag(OTHER, LATEST) == tagged(1, 50.0)
        assert await index.tags(OTHER) == [LATEST]
        history = [one.digest for one in await index.history(NGINX, LATEST)]
        assert history == digests(8, 9, 1)
        assert await index.holders(digest(1)) == [NGINX, OTHER]
        assert await index.linked(NGINX, digest(2))
        assert not await index.linked(OTHER, digest(2))
        assert await index.referrers(NGINX, digest(1)) == (referrer,)
        assert (await index.note("a"), await index.note("b")) == ([1], None)
