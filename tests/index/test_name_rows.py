"""Tags, links and referrers, as every index must know them."""

from functools import partial

from proxy.core.names import Repo, Tag, Target
from proxy.core.records import HISTORY_LIMIT
from proxy.index import TaggedImage
from tests.fakes.clock import Clock
from tests.index.indexes import (
    LATEST,
    NGINX,
    OTHER,
    Files,
    all_tags,
    digest,
    digests,
    entry,
    everything,
    listing,
    manifest,
    opened,
    tagged,
)


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
