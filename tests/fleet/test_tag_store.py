import math
from itertools import permutations

import pytest

from proxy.core.names import Repo, Tag, Target, sha256
from proxy.core.records import Descriptor
from proxy.fleet.store import Store
from proxy.fleet.tag_facts import DROPPED, GONE, Fact
from proxy.fleet.tag_store import FACT_SECONDS, UNKNOWN_SECONDS, Claim, Oldest, TagStore

KIND = "application/vnd.oci.image.manifest.v1+json"
NGINX = Target("docker.io", Repo("library/nginx"))
ALL = Oldest(0.0, 0.0)


def fact(tag: Tag, number: int, at: float) -> Fact:
    return Fact(NGINX, tag, Descriptor(KIND, sha256(str(number).encode()), number), at)


async def test_the_newest_fact_stays_in_whatever_order_they_come(store: Store) -> None:
    facts = TagStore(store)
    for place, order in enumerate(permutations((1, 2, 3))):
        tag = Tag(f"v{place}")
        newest = 0
        for number in order:
            newest = max(newest, number)
            won = await facts.settle(fact(tag, number, 1000.0 + number), "")
            assert won == fact(tag, newest, 1000.0 + newest)
        assert await facts.read([(NGINX, tag)]) == [fact(tag, 3, 1003.0)]


async def test_facts_of_the_same_time_have_one_order(store: Store) -> None:
    facts = TagStore(store)
    for tag, order in ((Tag("a"), (1, 2)), (Tag("b"), (2, 1))):
        for number in order:
            await facts.settle(fact(tag, number, 1000.0), "")
    a, b = await facts.read([(NGINX, Tag("a")), (NGINX, Tag("b"))])
    assert a is not None
    assert b is not None
    assert a.descriptor == b.descriptor


async def test_one_replica_has_the_lease_until_it_settles(store: Store) -> None:
    facts, key = TagStore(store), (NGINX, Tag("latest"))
    assert await facts.claim(key, "me", Oldest(900.0, 900.0)) == Claim(None, is_ours=True)
    assert await facts.claim(key, "you", Oldest(900.0, 900.0)) == Claim(None, is_ours=False)
    await facts.release(key, "you")
    assert await facts.claim(key, "you", Oldest(900.0, 900.0)) == Claim(None, is_ours=False)
    found = fact(Tag("latest"), 1, 1000.0)
    await facts.settle(found, "me")
    assert await facts.claim(key, "you", Oldest(900.0, 2000.0)) == Claim(found, is_ours=False)
    assert await facts.claim(key, "you", Oldest(1000.5, 0.0)) == Claim(None, is_ours=True)


@pytest.mark.parametrize("was_known", [False, True])
async def test_an_absence_is_a_fact_while_it_is_new_enough(
    store: Store, *, was_known: bool
) -> None:
    facts, key = TagStore(store), (NGINX, Tag("latest"))
    if was_known:
        await facts.settle(fact(Tag("latest"), 1, 1000.0), "")
    gone = Fact(*key, GONE, 1001.0)
    await facts.settle(gone, "")
    assert await facts.claim(key, "me", Oldest(math.inf, 1001.0)) == Claim(gone, is_ours=False)
    assert await facts.claim(key, "me", Oldest(0.0, 1001.5)) == Claim(None, is_ours=True)


async def test_that_a_tag_was_dropped_says_nothing_of_the_registry(store: Store) -> None:
    facts, key = TagStore(store), (NGINX, Tag("latest"))
    await facts.settle(fact(Tag("latest"), 1, 1000.0), "")
    await facts.settle(Fact(*key, DROPPED, 1001.0), "")
    assert await facts.claim(key, "me", ALL) == Claim(None, is_ours=True)


async def lives(store: Store) -> float:
    """Return for how many seconds Redis has the only tag."""
    return float(await store.run("PTTL", store.key("tag", f"{{{NGINX}:latest}}"))) / 1000


@pytest.mark.parametrize("negative_ttl", [0.0, 3600.0, math.inf])
async def test_absences_of_unknown_tags_fill_no_redis(store: Store, negative_ttl: float) -> None:
    facts, gone = TagStore(store), Fact(NGINX, Tag("latest"), GONE, 1000.0)
    expected = min(max(UNKNOWN_SECONDS, negative_ttl), FACT_SECONDS)
    for seconds in range(3):
        await facts.settle(gone._replace(at=1000.0 + seconds), "", (), negative_ttl)
        assert expected - 30 < await lives(store) <= expected


async def test_an_absence_shortens_no_life_of_another_fact(store: Store) -> None:
    facts, gone = TagStore(store), Fact(NGINX, Tag("latest"), GONE, 1001.0)
    await facts.settle(gone._replace(descriptor=DROPPED, at=1000.0), "")
    await facts.settle(gone, "")
    assert await lives(store) > FACT_SECONDS - 30
    await facts.settle(fact(Tag("latest"), 1, 1002.0), "")
    await facts.settle(gone._replace(at=1003.0), "")
    assert await lives(store) > FACT_SECONDS - 30


async def test_an_older_fact_does_not_bring_a_tag_back(store: Store) -> None:
    facts, key = TagStore(store), (NGINX, Tag("latest"))
    await facts.settle(Fact(*key, GONE, 1001.0), "")
    await facts.settle(fact(Tag("latest"), 1, 1000.5), "")
    assert [found.descriptor for found in await facts.read([key]) if found] == [GONE]


async def test_the_history_is_bounded_and_names_each_digest_once_in_a_row(store: Store) -> None:
    facts, key = TagStore(store), (NGINX, Tag("latest"))
    for number in range(130):
        await facts.settle(fact(Tag("latest"), number // 2, 1000.0 + number), "")
    [past] = await facts.histories([key])
    assert past is not None
    history = past.entries[:-1]
    assert [one.digest for one in history] == [sha256(str(n).encode()) for n in range(14, 64)]
    assert (history[-1].first_seen, history[-1].last_seen) == (1126.0, 1127.0)
