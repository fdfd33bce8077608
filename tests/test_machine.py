"""Store, index, evictor, pins and repair together, through random sequences of events.

Hypothesis makes up what happens; a model of a few dictionaries says what must be true after each
step: what is held, in which order it would go, how much is counted, and what no eviction touches.
"""

import asyncio
import os
import shutil
import tempfile
from contextlib import suppress
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from proxy.content.eviction import NoSpace
from proxy.core.errors import Conflict, PinUnknown
from proxy.core.names import Digest
from proxy.core.records import BLOCK, disk_bytes
from proxy.services.verify import Verifier
from tests.fakes.clock import Clock
from tests.model import ALL, BY_DIGEST, EPSILON, IMAGES, INDEXES, Content, Model, size_of
from tests.reopening import LIMIT, Cache, Download, abandoned, closed, opened

contents = st.sampled_from(ALL)
images = st.sampled_from(IMAGES + INDEXES)
places = st.integers(0, 20)
"""Of what is held, counted on from the last to the first."""

sizes = st.integers(0, 7 * BLOCK)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="millpond-machine-"))
        self.clock = Clock()
        self.model = Model()
        self.runner = asyncio.Runner()
        self.cache: Cache | None = None

    def run(self, work: Any) -> Any:
        """Return what a coroutine returns; each is one step in time."""
        self.clock.advance(1)
        return self.runner.run(work)

    def teardown(self) -> None:
        if self.cache is not None:
            self.run(closed(self.cache))
        self.runner.close()
        shutil.rmtree(self.root)

    @initialize(first=st.lists(images, max_size=4))
    def begin(self, first: list[Content]) -> None:
        self.cache = self.run(opened(self.root, self.clock))
        for image in first:
            self.pull(image)

    @property
    def now(self) -> Cache:
        assert self.cache is not None
        return self.cache

    # What clients do

    @rule(content=contents)
    def hold(self, content: Content) -> None:
        if content.digest in self.model.used:
            self.read(content)
        else:
            self._try(content, partial(self._hold, content))

    @rule(content=images)
    def pull(self, content: Content) -> None:
        for digest in [content.digest, *sorted(self.model.tree(content.digest))]:
            self.hold(BY_DIGEST[digest])

    @rule(content=contents, size=sizes)
    def begin_download(self, content: Content, size: int) -> None:
        self._evicting(size, partial(self._begin, content, size))

    @rule(number=st.integers(0, 3), share=st.floats(0, 1))
    def go_on(self, number: int, share: float) -> None:
        if number < len(self.now.downloads):
            download = self.now.downloads[number]
            upto = int(len(download.content.body) * share)
            more = max(0, disk_bytes(upto) - disk_bytes(download.promised))
            self._evicting(more, partial(download.grow, upto))

    @rule(number=st.integers(0, 3))
    def finish_download(self, number: int) -> None:
        if number < len(self.now.downloads):
            download = self.now.downloads.pop(number)
            size = len(download.content.body)
            more = max(0, disk_bytes(size) - disk_bytes(download.promised))
            self._evicting(more, download.finish)
            download.end()

    @precondition(lambda self: self.model.used)
    @rule(place=places)
    def use(self, place: int) -> None:
        digest = self._at(place)
        self.run(self._touch(digest))
        self.model.use(digest, self.clock())

    @rule(content=contents)
    def read(self, content: Content) -> None:
        """Get the bytes that were held; what has vanished is held no longer."""
        digest = content.digest
        body = self.run(self._read(digest))
        if digest in self.model.used and digest not in self.model.missing:
            self.model.use(digest, self.clock())
            assert digest in self.model.corrupt or body == BY_DIGEST[digest].body
        else:
            assert body is None
            self.model.drop(digest)

    # What operators do

    @rule(wanted=st.integers(1, 7 * BLOCK))
    def evict(self, wanted: int) -> None:
        self._evicting(wanted, lambda: self.now.evictor.evict(wanted), is_told=True)

    @precondition(lambda self: self.model.used)
    @rule(place=places)
    def pin(self, place: int) -> None:
        self._pin(self._at(place))

    @rule(content=images)
    def pin_what_may_come(self, content: Content) -> None:
        self._pin(content.digest)

    @precondition(lambda self: self.model.pins)
    @rule(place=places)
    def unpin(self, place: int) -> None:
        digest = self.model.pins[place % len(self.model.pins)]
        self.run(self.now.pins.remove(digest))
        self.model.pins.remove(digest)

    @rule(content=contents)
    def unpin_what_may_not_be_pinned(self, content: Content) -> None:
        if content.digest not in self.model.pins:
            with pytest.raises(PinUnknown):
                self.run(self.now.pins.remove(content.digest))

    @precondition(lambda self: self.model.used)
    @rule(place=places)
    def drop(self, place: int) -> None:
        digest = self._at(place)
        self.run(self.now.content.faults.drop(digest, reason="a test"))
        self.model.drop(digest)

    @rule()
    def verify(self) -> None:
        """Find all that is bad; a little may have to go for the notes."""
        self.run(self._verify())
        for digest in self.model.corrupt | self.model.missing:
            self.model.drop(digest)
        self.model.evicted(self.model.used.keys() - self._held())

    # What goes wrong

    @rule()
    def restart(self) -> None:
        self.run(closed(self.now))
        self.model.flush()
        self._reopen()

    @rule()
    def crash(self) -> None:
        self.run(abandoned(self.now))
        self._reopen()

    @rule(content=contents)
    def crash_between_rename_and_row(self, content: Content) -> None:
        if content.digest not in self.model.used:
            self._try(content, partial(self._put, content), is_held=False)
        self.crash()

    @precondition(lambda self: self.model.used)
    @rule(place=places)
    def crash_between_row_and_unlink(self, place: int) -> None:
        digest = self._at(place)
        if digest not in self.model.missing:
            self.run(self.now.index.drop_blobs([digest]))
            self.model.used.pop(digest, None)
            self.model.rows.pop(digest, None)
        self.crash()

    @precondition(lambda self: self.model.used)
    @rule(place=places)
    def delete_behind_its_back(self, place: int) -> None:
        digest = self._at(place)
        if digest not in self.model.missing:
            self._path(digest).unlink()
            self.model.missing.add(digest)
            self.model.corrupt.discard(digest)

    @precondition(lambda self: self.model.used)
    @rule(place=places, share=st.floats(0, 0.99))
    def corrupt(self, place: int, share: float) -> None:
        digest = self._at(place)
        if digest not in self.model.missing and not BY_DIGEST[digest].children:
            with self._path(digest).open("r+b") as file:
                file.seek(int(share * len(BY_DIGEST[digest].body)))
                file.write(b"\xff")
            self.model.corrupt.add(digest)

    @rule()
    def lose_the_index(self) -> None:
        self.run(closed(self.now))
        shutil.rmtree(self.root / "index")
        self.model.rows.clear()
        self.model.pins.clear()
        self._reopen()

    # What must be true after each

    @precondition(lambda self: self.cache is not None)
    @invariant()
    def nothing_exceeds_the_limit(self) -> None:
        assert self._on_disk() <= self.now.evictor.used <= LIMIT

    @precondition(lambda self: self.cache is not None)
    @invariant()
    def every_byte_is_counted_once(self) -> None:
        promised = sum(disk_bytes(download.promised) for download in self.now.downloads)
        held = sum(map(size_of, self.model.used))
        assert self.now.evictor.used == held + promised + self.now.store.quarantine.bytes

    @precondition(lambda self: self.cache is not None)
    @invariant()
    def the_index_is_the_store(self) -> None:
        index = self.now.index
        assert self._held() == self.model.used.keys()
        self.model.flush()
        assert self._files().keys() == self.model.used.keys() - self.model.missing
        for digest, used_at in self.model.used.items():
            record, content = self.runner.run(index.blob(digest)), BY_DIGEST[digest]
            assert record is not None
            assert record.size == len(content.body)
            assert record.media_type == (content.media_type or None)
            assert self.runner.run(index.children(digest)) == content.children
            if digest not in self.model.unordered:
                assert abs(record.used_at - used_at) < EPSILON

    @precondition(lambda self: self.cache is not None)
    @invariant()
    def the_coldest_goes_first_and_manifests_before_what_they_list(self) -> None:
        order = self._order()
        known = [self.model.used[digest] for digest in order if digest not in self.model.unordered]
        assert all(a < b + EPSILON for a, b in pairwise(known))
        for digest in order:
            for child in self.model.below(digest):
                assert order.index(digest) < order.index(child), "a manifest outlives its content"

    # How it is done

    def _try(self, content: Content, work: Any, *, is_held: bool = True) -> None:
        if self._evicting(disk_bytes(len(content.body)), work) and is_held:
            self.model.hold(content, self.clock())

    def _evicting(self, wanted: int, work: Any, *, is_told: bool = False) -> bool:
        """Do what may evict to have room; return whether there was room."""
        excess = wanted if is_told else disk_bytes(wanted) - LIMIT + self.now.evictor.used
        before, aside = self._held(), self.now.store.quarantine.bytes
        try:
            self.run(work())
            had_room = True
        except NoSpace:
            had_room = False
        gone = before - self._held()
        freed = sum(map(size_of, gone)) + aside - self.now.store.quarantine.bytes
        left = self.model.evicted(gone)
        if had_room:
            assert freed >= excess or not left, "there was more to evict"
            largest = max(map(size_of, gone), default=aside)
            assert freed - largest < max(excess, 1), "more went than had to"
        else:
            assert excess > freed + sum(map(size_of, left)), "there would have been room"
        return had_room

    def _pin(self, digest: Digest) -> None:
        with suppress(Conflict):
            self.run(self.now.pins.add(digest))
            if digest not in self.model.pins:
                self.model.pins.append(digest)

    def _at(self, place: int) -> Digest:
        held = sorted(self.model.used)
        return held[place % len(held)]

    def _held(self) -> set[Digest]:
        return set(self._order())

    def _order(self) -> list[Digest]:
        page = self.runner.run(self.now.index.coldest(None, 1000))
        return [record.digest for _, record in page]

    async def _hold(self, content: Content) -> None:
        download = await Download.begun(self.now, content, len(content.body))
        await download.finish()
        promise, spool = download.reservation, download.spool
        await self.now.content.adopt(promise, spool, content.descriptor, content.children)
        spool.close()
        self._stamp(content.digest, self.clock())

    async def _put(self, content: Content) -> None:
        """Do half of it."""
        download = await Download.begun(self.now, content, len(content.body))
        await download.finish()
        await self.now.store.put(content.digest, download.spool)
        self.now.downloads.append(download)
        self._stamp(content.digest, self.clock())

    async def _begin(self, content: Content, size: int) -> None:
        self.now.downloads.append(await Download.begun(self.now, content, size))

    async def _touch(self, digest: Digest) -> None:
        self.now.index.touch(digest)

    async def _read(self, digest: Digest) -> bytes | None:
        return await self.now.content.read(digest)

    async def _verify(self) -> None:
        verifier = Verifier(self.now.content, _never, self.clock)
        async for _ in verifier.run(repair=False, rate=0, restart=True):
            pass

    def _reopen(self) -> None:
        self.cache = None
        files = self._files()
        self.cache = self.run(opened(self.root, self.clock))
        self.model.reopen(files)
        self.model.evicted(self.model.used.keys() - self._held())  # a little, for notes

    def _path(self, digest: Digest) -> Path:
        return self.root / "blobs/sha256" / digest.removeprefix("sha256:")

    def _stamp(self, digest: Digest, at: float) -> None:
        os.utime(self._path(digest), (at, at))

    def _files(self) -> dict[Digest, float]:
        files = (self.root / "blobs/sha256").iterdir()
        return {Digest(f"sha256:{path.name}"): path.stat().st_mtime for path in files}

    def _on_disk(self) -> int:
        places = [self.root / name for name in ("blobs/sha256", "spool", "quarantine")]
        return sum(disk_bytes(file.stat().st_size) for place in places for file in place.iterdir())


async def _never(*_: object) -> bool:
    return False


@pytest.mark.timeout(600)
def test_whatever_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "proxy.content.pins._PAUSE_FACTOR", 0.0
    )  # what is pinned is looked at each time
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=150,
            stateful_step_count=30,
            deadline=None,
            database=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
            phases=(Phase.generate,),  # shrinking would take minutes
        ),
    )
