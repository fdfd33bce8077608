"""Every index through anything that may happen to it, beside a model of a few dictionaries."""

import asyncio
import shutil
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, Child, TagRecord, Usage, disk_bytes
from proxy.index import facts
from tests.fakes.clock import Clock
from tests.index.indexes import (
    FILES,
    MANIFEST,
    NGINX,
    OTHER,
    Files,
    all_tags,
    digest,
    everything,
    order,
    tagged,
)

AFTER = 1e-6
BLOBS, IMAGES, INDEXES = range(6), range(10, 14), range(20, 22)
numbers = st.sampled_from([*BLOBS, *IMAGES, *INDEXES])
targets = st.sampled_from([NGINX, OTHER])
tags = st.sampled_from([Tag("a"), Tag("b"), Tag("c")])


def below(number: int) -> list[int]:
    """Return what a manifest lists: neighbours share content."""
    if number in INDEXES:
        return [10 + (number + step) % 4 for step in (0, 1)]
    return [(number + step) % 6 for step in range(3)] if number in IMAGES else []


class Model:
    """What must be true."""

    def __init__(self) -> None:
        self.held: dict[int, BlobRecord] = {}
        self.unknown: set[int] = set()
        self.links: set[tuple[Target, int]] = set()
        self.tags: dict[tuple[Target, Tag], TagRecord] = {}
        self.history: dict[tuple[Target, Tag], list[tuple[Digest, float, float]]] = {}

    def listed(self, number: int) -> list[int]:
        return [] if number not in self.held or number in self.unknown else below(number)

    def parents(self, number: int) -> list[int]:
        return [parent for parent in self.held if number in self.listed(parent)]

    def set_blob(self, number: int, record: BlobRecord) -> None:
        above = [self.held[parent].used_at + AFTER for parent in self.parents(number)]
        self.held[number] = record
        self.use(number, max([record.used_at, *above]))

    def use(self, number: int, at: float) -> None:
        record = self.held.get(number)
        if record is None:
            return
        at = max(at, record.used_at)
        self.held[number] = BlobRecord(
            record.digest, record.size, record.media_type, at, record.is_public
        )
        for child in self.listed(number):
            self.use(child, at + AFTER)

    def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        self.tags[target, tag] = record
        history = self.history.setdefault((target, tag), [])
        found, seen = record.descriptor.digest, record.checked_at
        if history and history[-1][0] == found:
            history[-1] = found, history[-1][1], seen
        else:
            history.append((found, seen, seen))

    @property
    def order(self) -> list[Digest]:
        records = sorted(self.held.values(), key=lambda record: record.used_at)
        return [record.digest for record in records]

    @property
    def known(self) -> set[int]:
        return {*self.held, *(child for number in self.held for child in self.listed(number))}


class Machine(RuleBasedStateMachine):
    kind: type[Files]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="millpond-index-"))
        self.clock = Clock()
        self.model = Model()
        self.runner = asyncio.Runner()
        self.files = self.kind(self.root / "index", self.clock)
        self.index = self.run(self.files.open())

    def run(self, work: Any) -> Any:
        self.clock.advance(1)
        return self.runner.run(work)

    def teardown(self) -> None:
        self.run(self.files.close())
        self.runner.close()
        shutil.rmtree(self.root)

    def record(self, number: int, size: int) -> BlobRecord:
        kind = MANIFEST if below(number) else None
        return BlobRecord(digest(number), size, kind, self.clock(), is_public=size % 2 == 1)

    @rule(number=numbers, size=st.integers(0, 9000), is_known=st.booleans(), age=st.integers(0, 9))
    def hold(self, number: int, size: int, is_known: bool, age: int) -> None:
        self.clock.advance(1)
        record = self.record(number, size)
        record = BlobRecord(
            record.digest, size, record.media_type, record.used_at - age / 2, record.is_public
        )
        listed = [Child(digest(child), 1) for child in below(number)]
        self.model.unknown.discard(number)
        if below(number) and not is_known:
            self.model.unknown.add(number)
        self.run(self.index.set_blob(record, listed if is_known else None))
        self.model.set_blob(number, record)

    @rule(chosen=st.lists(numbers, max_size=5))
    def drop(self, chosen: list[int]) -> None:
        self.run(self.index.drop_blobs(map(digest, chosen)))
        for number in chosen:
            self.model.held.pop(number, None)
            self.model.unknown.discard(number)

    @rule(chosen=st.lists(numbers, min_size=1, max_size=3, unique=True))
    def touch(self, chosen: list[int]) -> None:
        for number in chosen:
            self.clock.advance(1)
            self.index.touch(digest(number))
            self.model.use(number, self.clock())

    @rule(holder=targets, chosen=st.lists(numbers, min_size=1, max_size=4))
    def link(self, holder: Target, chosen: list[int]) -> None:
        self.run(self.index.link(holder, map(digest, chosen)))
        self.model.links |= {(holder, number) for number in chosen}

    @rule(holder=targets, chosen=st.lists(numbers, min_size=1, max_size=4))
    def unlink(self, holder: Target, chosen: list[int]) -> None:
        self.run(self.index.unlink(holder, map(digest, chosen)))
        self.model.links -= {(holder, number) for number in chosen}

    @rule(holder=targets, tag=tags, number=numbers)
    def set_tag(self, holder: Target, tag: Tag, number: int) -> None:
        record = tagged(number, self.clock())
        self.run(self.index.set_tag(holder, tag, record))
        self.model.set_tag(holder, tag, record)

    @rule(holder=targets, tag=tags)
    def drop_tag(self, holder: Target, tag: Tag) -> None:
        self.run(self.index.set_tag(holder, tag, None))
        self.model.tags.pop((holder, tag), None)

    @rule(holder=targets, tag=tags)
    def forget_tag(self, holder: Target, tag: Tag) -> None:
        self.run(self.index.forget_tag(holder, tag))
        self.model.tags.pop((holder, tag), None)
        self.model.history.pop((holder, tag), None)

    @rule()
    def prune(self) -> None:
        self.run(self.index.prune(self.clock() + 1))
        model, known = self.model, self.model.known
        model.links = {link for link in model.links if link[1] in known}
        digests = {digest(number) for number in known}
        for key in list(model.history):
            record = model.tags.get(key)
            if record is None or record.descriptor.digest not in digests:
                model.tags.pop(key, None)
                del model.history[key]

    @rule(chosen=st.lists(numbers, min_size=2, max_size=6, unique=True), holder=targets)
    def do_much_at_once(self, chosen: list[int], holder: Target) -> None:
        records = [self.record(number, 10) for number in chosen]

        async def all_at_once() -> None:
            await asyncio.gather(
                *(
                    self.index.set_blob(record, [Child(digest(c), 10) for c in below(number)])
                    for number, record in zip(chosen, records, strict=True)
                ),
                self.index.link(holder, map(digest, chosen)),
                self.index.drop_blobs([digest(99)]),
                *(self.index.blob(digest(number)) for number in chosen),
            )

        self.run(all_at_once())
        for number, record in zip(chosen, records, strict=True):
            self.model.unknown.discard(number)
            self.model.set_blob(number, record)
            self.model.links.add((holder, number))

    @precondition(lambda self: self.model.held)
    @rule()
    def reopen(self) -> None:
        self.index = self.run(self.files.open())

    @invariant()
    def held_content_is_right(self) -> None:
        self.run(self._held_content_is_right())

    async def _held_content_is_right(self) -> None:
        held = self.model.held
        sizes = [disk_bytes(record.size) for record in held.values()]
        assert self.index.usage() == Usage(len(held), sum(sizes))
        found = await order(self.index, 3)
        assert sorted(found) == sorted(self.model.order)
        at = {record.digest: record.used_at for record in held.values()}
        assert [at[one] for one in found] == sorted(at.values())
        pages = await everything(partial(self.index.blobs, limit=3), lambda row: row.digest)
        assert {record.digest: record for record in pages} == {
            record.digest: record for record in held.values()
        }
        for number in (*BLOBS, *IMAGES, *INDEXES):
            record = await self.index.blob(digest(number))
            assert record == held.get(number)
            listed = await self.index.children(digest(number))
            assert (listed is None) == (number in self.model.unknown)
            assert [child.digest for child in listed or ()] == [
                digest(child) for child in self.model.listed(number)
            ]
            parents = await self.index.parents(digest(number))
            assert set(parents) == {digest(parent) for parent in self.model.parents(number)}
        unknown = await everything(partial(self.index.incomplete, limit=2), lambda one: one)
        assert set(unknown) == {digest(number) for number in self.model.unknown}

    @invariant()
    def names_are_right(self) -> None:
        self.run(self._names_are_right())

    async def _names_are_right(self) -> None:
        model = self.model
        assert await all_tags(self.index) == [
            (*key, model.tags[key].descriptor.digest) for key in sorted(model.tags)
        ]
        for target in (NGINX, OTHER):
            assert await self.index.tags(target) == sorted(t for r, t in model.tags if r == target)
            for tag in (Tag("a"), Tag("b"), Tag("c")):
                assert await self.index.tag(target, tag) == model.tags.get((target, tag))
                history = [
                    (one.digest, one.first_seen, one.last_seen)
                    for one in await self.index.history(target, tag)
                ]
                assert history == model.history.get((target, tag), [])
            for number in (*BLOBS, *IMAGES, *INDEXES):
                linked = (target, number) in model.links
                assert await self.index.linked(target, digest(number)) is linked
                assert (target in await self.index.holders(digest(number))) is linked


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("weight", [4, 40_000])
def test_an_index_is_what_the_model_is(
    kind: str, weight: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "RAM_WEIGHT", weight)
    machine = type("M", (Machine,), {"kind": FILES[kind]})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
