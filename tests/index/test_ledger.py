from collections.abc import Iterable

import pytest

from proxy.core.names import Digest, sha256
from proxy.core.records import BLOCK, BlobRecord, Child
from proxy.index.ledger import Ledger


def digest(name: str) -> Digest:
    return sha256(name.encode())


def record(name: str, at: float = 0.0, size: int = 1, media_type: str | None = None) -> BlobRecord:
    return BlobRecord(digest(name), size, media_type, at)


def listing(names: str) -> list[Child]:
    return [Child(digest(name), 1) for name in names]


def put(ledger: Ledger, name: str, lists: str = "", at: float = 0.0) -> None:
    ledger.put(record(name, at), listing(lists))


def load(ledger: Ledger, name: str, lists: str = "", at: float = 0.0) -> None:
    ledger.load(record(name, at), listing(lists))


def order(ledger: Ledger) -> str:
    names = {digest(name): name for name in "abcdefghijklmnopqrstuvwxyzMNI"}
    return "".join(names[held.digest] for held in ledger.coldest())


def sort(ledger: Ledger) -> None:
    for _ in ledger.sort():
        pass


def is_before(ledger: Ledger, first: str, *then: str) -> bool:
    found = order(ledger)
    return all(found.index(first) < found.index(other) for other in then)


@pytest.fixture
def ledger() -> Ledger:
    return Ledger()


def hold(ledger: Ledger, names: Iterable[str]) -> None:
    for name in names:
        put(ledger, name)


def test_what_was_used_last_is_the_warmest(ledger: Ledger) -> None:
    hold(ledger, "abcd")
    assert order(ledger) == "abcd"
    assert ledger.use(digest("b"), 5.0) == 1
    assert ledger.use(digest("a"), 6.0) == 1
    assert order(ledger) == "cdba"
    assert ledger.use(digest("x"), 7.0) == 0
    used = ledger.get(digest("b"))
    assert used is not None
    assert used.used_at == 5.0


def test_a_late_note_of_an_old_use_takes_nothing_back(ledger: Ledger) -> None:
    put(ledger, "a", at=10.0)
    ledger.use(digest("a"), 5.0)
    held = ledger.get(digest("a"))
    assert held is not None
    assert held.used_at == 10.0


def test_holding_again_makes_it_the_warmest_and_counts_it_once(ledger: Ledger) -> None:
    hold(ledger, "aba")
    assert order(ledger) == "ba"
    assert (ledger.files, ledger.disk_bytes) == (2, 2 * BLOCK)
    ledger.put(record("a", size=BLOCK + 1))
    assert ledger.disk_bytes == 3 * BLOCK


def test_a_use_of_a_manifest_is_one_of_all_that_it_lists(ledger: Ledger) -> None:
    hold(ledger, "abc")
    put(ledger, "M", "ab")
    put(ledger, "z")
    assert ledger.use(digest("M"), 5.0) == 3
    assert order(ledger)[:3] == "czM"
    assert is_before(ledger, "M", "a", "b")
    held = ledger.get(digest("a"))
    assert held is not None
    assert 5.0 < held.used_at < 5.1


def test_what_two_manifests_of_an_index_share_is_warmer_than_both(ledger: Ledger) -> None:
    hold(ledger, "abc")
    put(ledger, "M", "ab")
    put(ledger, "N", "bc")
    put(ledger, "I", "MN")
    for act in (lambda: ledger.use(digest("I"), 5.0), lambda: ledger.defer(digest("I"))):
        act()
        assert is_before(ledger, "I", "M", "N")
        assert is_before(ledger, "M", "a", "b")
        assert is_before(ledger, "N", "b", "c")


def test_what_is_spared_goes_behind_the_others_with_all_that_it_lists(ledger: Ledger) -> None:
    put(ledger, "M", "ab", at=1.0)
    hold(ledger, "abc")
    ledger.defer(digest("M"))
    assert order(ledger)[:2] == "cM"
    assert is_before(ledger, "M", "a", "b")
    held = ledger.get(digest("M"))
    assert held is not None
    assert held.used_at == 1.0


def test_manifests_that_list_each_other_end(ledger: Ledger) -> None:
    put(ledger, "M", "N")
    put(ledger, "N", "M")
    put(ledger, "a", "a")
    assert ledger.use(digest("M"), 5.0) == 2
    assert ledger.use(digest("a"), 5.0) == 1
    assert ledger.children(digest("a")) == ()
    ledger.defer(digest("N"))
    load(ledger, "b", "N")
    sort(ledger)
    for name in "MNab":
        ledger.pop(digest(name))
    assert (order(ledger), ledger.files, ledger.disk_bytes) == ("", 0, 0)
    assert not any(ledger.is_known(digest(name)) for name in "MNab")


def test_a_chain_however_long_is_followed(ledger: Ledger) -> None:
    names = [f"manifest {number}" for number in range(5000)]
    for name, below in zip(names, [*names[1:], "the end"], strict=True):
        ledger.put(record(name), [Child(digest(below), 1)])
    assert ledger.use(digest(names[0]), 5.0) == len(names)
    assert next(ledger.coldest()).digest == digest(names[0])


def test_what_is_listed_is_known_as_long_as_somebody_lists_it(ledger: Ledger) -> None:
    put(ledger, "M", "ab")
    put(ledger, "N", "bc")
    assert sorted(ledger.parents(digest("b"))) == sorted([digest("M"), digest("N")])
    assert sorted(ledger.manifests()) == sorted([digest("M"), digest("N")])
    assert digest("b") not in ledger
    ledger.pop(digest("M"))
    assert not ledger.is_known(digest("a"))
    assert ledger.is_listed(digest("b"))
    assert ledger.parents(digest("b")) == [digest("N")]
    ledger.pop(digest("N"))
    assert not any(ledger.is_known(digest(name)) for name in "MNabc")
    assert ledger.parents(digest("b")) == []


def test_what_is_listed_twice_is_listed_until_both_have_gone(ledger: Ledger) -> None:
    put(ledger, "M", "a")
    put(ledger, "M", "a")
    ledger.pop(digest("M"))
    assert not ledger.is_known(digest("a"))


def test_a_manifest_that_is_held_anew_lists_what_it_says_now(ledger: Ledger) -> None:
    put(ledger, "M", "ab")
    put(ledger, "M", "bc")
    assert ledger.children(digest("M")) == tuple(listing("bc"))
    assert not ledger.is_known(digest("a"))


def test_the_size_that_counts_is_that_of_what_is_held(ledger: Ledger) -> None:
    ledger.put(record("a", size=7))
    ledger.put(record("M"), [Child(digest("a"), 99), Child(digest("b"), 99)])
    assert ledger.children(digest("M")) == (Child(digest("a"), 7), Child(digest("b"), 99))
    ledger.pop(digest("a"))
    assert ledger.disk_bytes == BLOCK
    assert ledger.is_known(digest("a"))


@pytest.mark.parametrize("first", ["honest", "evil"])
def test_of_several_claims_about_a_size_the_smallest_counts(ledger: Ledger, first: str) -> None:
    """Anybody may claim any size. An absurd one must not make another's image too large to pin."""
    claims = {"honest": 1000, "evil": 1 << 60}
    for name in (first, *(claims.keys() - {first})):
        ledger.put(record(name), [Child(digest("layer"), claims[name])])
    assert ledger.children(digest("honest")) == (Child(digest("layer"), 1000),)


def test_a_slot_is_used_again_and_remembers_nothing(ledger: Ledger) -> None:
    ledger.put(record("a", at=9.0, size=5 * BLOCK, media_type="x/y"), listing("bc"))
    slots = len(ledger._keys)
    ledger.pop(digest("a"))
    for name in "def":
        put(ledger, name)
    assert len(ledger._keys) == slots
    assert order(ledger) == "def"
    assert ledger.get(digest("d")) == record("d")
    assert [ledger.children(digest(name)) for name in "def"] == [(), (), ()]
    assert not any(ledger.is_listed(digest(name)) for name in "def")
    ledger.pop(digest("x"))
    assert ledger.files == 3


def test_loaded_rows_are_sorted_among_themselves_behind_nothing_that_is_new(
    ledger: Ledger,
) -> None:
    put(ledger, "n", at=1.0)
    for name, at in (("c", 30.0), ("a", 10.0), ("d", 40.0), ("b", 20.0)):
        load(ledger, name, at=at)
    put(ledger, "m", at=2.0)
    ledger.use(digest("b"), 50.0)
    sort(ledger)
    assert order(ledger) == "acdnmb"


def test_a_loaded_row_changes_nothing_that_is_held(ledger: Ledger) -> None:
    put(ledger, "a", "x", at=9.0)
    load(ledger, "a", "y", at=1.0)
    held = ledger.get(digest("a"))
    assert held is not None
    assert held.used_at == 9.0
    assert ledger.children(digest("a")) == tuple(listing("x"))


def test_what_a_loaded_manifest_lists_is_as_warm_as_it(ledger: Ledger) -> None:
    for name, lists, at in (
        ("a", "", 1.0),
        ("b", "", 2.0),
        ("M", "ab", 10.0),
        ("c", "", 5.0),
        ("I", "M", 20.0),
    ):
        load(ledger, name, lists, at)
    sort(ledger)
    assert order(ledger)[:3] == "cIM"
    assert is_before(ledger, "M", "a", "b")


def test_many_loaded_rows_are_in_order(ledger: Ledger) -> None:
    for number in range(50_000):
        name = str(number * 7919 % 50_000)
        ledger.load(record(name, at=float(name)), ())
    sort(ledger)
    used = [held.used_at for held in ledger.coldest()]
    assert used == sorted(used)
    assert len(used) == 50_000


def test_marks_tell_what_a_scan_has_not_met(ledger: Ledger) -> None:
    for name in "ab":
        load(ledger, name)
    put(ledger, "c")
    assert ledger.seen(digest("a"))
    assert not ledger.seen(digest("x"))
    assert ledger.unseen() == [digest("b")]
    assert sorted(ledger.unseen()) == sorted(map(digest, "abc"))


def test_shelves_hold_everything_once(ledger: Ledger) -> None:
    hold(ledger, "abcdef")
    put(ledger, "M", "xyz")
    shelves = [ledger.shelf(number) for number in range(256)]
    assert sorted(one for shelf in shelves for one in shelf) == sorted(map(digest, "abcdefM"))
    for number, shelf in enumerate(shelves):
        assert all(int(one[7:9], 16) == number for one in shelf)


def test_digests_of_both_lengths(ledger: Ledger) -> None:
    long = Digest("sha512:" + "ab" * 64)
    ledger.put(BlobRecord(long, 1, "x/y", 1.0))
    assert next(ledger.coldest()) == BlobRecord(long, 1, "x/y", 1.0)
