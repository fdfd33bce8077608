"""What is held, in the order of last use, and what each held manifest lists: all in RAM.

Columns instead of objects: about 200 bytes a blob, so that a million fit. A slot is a row of
the columns; what a held manifest lists has a slot too, held or not. The slot of a key is looked up
among those with the same first byte: one dictionary of a million would pause all others when it
grows. The order of use is a list linked through two columns, from slot 0 to the coldest and on to
the warmest.
"""

import heapq
from array import array
from collections.abc import Iterable, Iterator
from typing import Final

from proxy.core.names import Digest
from proxy.core.records import BlobRecord, Child, disk_bytes

_END: Final = 0
_HELD: Final = 1
_LOADED: Final = 2
_SEEN: Final = 4
_PUBLIC: Final = 8
_SHORT: Final = 32
"""Bytes of a sha256; a longer key is kept whole besides. Of a million objects, or a list of as
many, each look of the garbage collector would be a pause of a tenth of a second."""

_IS_UNSEEN: Final = bytes(state & _HELD and not state & _SEEN for state in range(256))
_WITHOUT_SEEN: Final = bytes(state & ~_SEEN for state in range(256))
_SIZES_END: Final = 1 << 64
_SORT_CHUNK: Final = 5_000
_AFTER: Final = 1e-6
"""Seconds by which content counts as used later than the manifest that lists it."""


class Ledger:
    """A manifest is always colder than what it lists, so that it is the first of them to go."""

    def __init__(self) -> None:
        self._slots: list[dict[bytes, int]] = [{} for _ in range(256)]
        self._keys = bytearray(_SHORT)
        self._long_keys: dict[int, bytes] = {}
        self._sizes = array("Q", [0])
        self._used = array("d", [0.0])
        self._types = array("H", [0])
        self._states = array("B", [0])
        self._listings = array("I", [0])
        self._labels = array("I", [0])
        self._colder = array("I", [_END])
        self._warmer = array("I", [_END])
        self._free: list[int] = []
        self._lists: dict[int, bytes] = {}
        self._type_names: list[str | None] = [None]
        self._type_numbers: dict[str | None, int] = {None: 0}
        self.files = 0
        self.disk_bytes = 0

    def __contains__(self, digest: Digest) -> bool:
        slot = self._known(digest)
        return slot is not None and self._states[slot] & _HELD != 0

    def get(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""
        slot = self._held(digest)
        return None if slot is None else self._record(slot)

    def put(self, record: BlobRecord, children: Iterable[Child] = ()) -> None:
        """Hold content, as the warmest."""
        slot = self._hold(record, children)
        self._states[slot] |= _SEEN
        self._append(slot, before=_END)

    def load(self, record: BlobRecord, children: Iterable[Child] = ()) -> None:
        """Hold content as a former process left it, unless it is held; ``sort`` finds its place."""
        if record.digest in self:
            return
        slot = self._hold(record, children)
        self._states[slot] |= _LOADED
        self._append(slot, before=self._warmer[_END])

    def pop(self, digest: Digest) -> None:
        """Hold content no longer; nothing happens when it is not held."""
        slot = self._held(digest)
        if slot is None:
            return
        self._unlink(slot)
        self._states[slot] = 0
        self.files -= 1
        self.disk_bytes -= disk_bytes(self._sizes[slot])
        for child in _slots_in(self._lists.pop(slot, b"")):
            self._listings[child] -= 1
            self._forget_unless_needed(child)
        self._forget_unless_needed(slot)

    def use(self, digest: Digest, now: float) -> int:
        """Make content the warmest, and what it lists warmer still; return how many moved."""
        slot = self._held(digest)
        if slot is None:
            return 0
        self._used[slot] = max(now, self._used[slot])
        moved = self._tree(slot)
        self._warm(moved)
        for one in moved:
            self._states[one] &= ~_LOADED
            after = self._used[one] + _AFTER
            for child in self._listed(one):
                self._used[child] = max(after, self._used[child])
        return len(moved)

    def coldest(self) -> Iterator[BlobRecord]:
        """Iterate over held content, coldest first; must not change meanwhile."""
        slot = self._warmer[_END]
        while slot != _END:
            yield self._record(slot)
            slot = self._warmer[slot]

    def defer(self, digest: Digest) -> None:
        """Make content and what it lists the warmest in order, their last use unchanged."""
        slot = self._held(digest)
        if slot is not None:
            self._warm(self._tree(slot))

    def children(self, digest: Digest) -> tuple[Child, ...]:
        """Return what a held manifest lists; empty for everything else."""
        slot = self._held(digest)
        return tuple(
            Child(self._digest(child), self._sizes[child])
            for child in self._listed(-1 if slot is None else slot)
        )

    def is_known(self, digest: Digest) -> bool:
        """Tell whether this is held, or listed by what is held."""
        return self._known(digest) is not None

    def parents(self, digest: Digest) -> list[Digest]:
        """Return the held manifests that list this. Looks at all of them."""
        slot = self._known(digest)
        if slot is None or not self._listings[slot]:
            return []
        packed = array("I", [slot]).tobytes()  # a search in bytes is fast, and finds too much
        found = [one for one, listed in self._lists.items() if packed in listed]
        return [self._digest(one) for one in found if slot in _slots_in(self._lists[one])]

    def manifests(self) -> Iterator[Digest]:
        """Iterate over the held manifests that list something; may change meanwhile."""
        for slot in array("I", self._lists):
            if slot in self._lists:
                yield self._digest(slot)

    def is_listed(self, digest: Digest) -> bool:
        """Tell whether a held manifest lists this."""
        slot = self._known(digest)
        return slot is not None and self._listings[slot] > 0

    def label(self, digest: Digest) -> int:
        """Return the number that was put on what is known; 0 for none."""
        slot = self._known(digest)
        return 0 if slot is None else self._labels[slot]

    def set_label(self, digest: Digest, number: int) -> bool:
        """Put a number on what is known, until it is forgotten; tell whether it is known."""
        slot = self._known(digest)
        if slot is not None:
            self._labels[slot] = number
        return slot is not None

    def forget_labels(self) -> None:
        """Take all numbers away."""
        self._labels = array("I", bytes(4 * len(self._labels)))

    def shelf(self, number: int) -> list[Digest]:
        """Return what is held of the digests whose first byte is ``number``, sorted."""
        slots = self._slots[number].values()
        found = [self._digest(slot) for slot in slots if self._states[slot] & _HELD]
        return sorted(found, key=lambda digest: (len(digest), digest))

    def seen(self, digest: Digest) -> bool:
        """Tell whether content is held, and mark it."""
        slot = self._held(digest)
        if slot is not None:
            self._states[slot] |= _SEEN
        return slot is not None

    def unseen(self) -> list[Digest]:
        """Return what is held and has no mark, and take all marks away."""
        states = self._states.tobytes()
        found = _where(states.translate(_IS_UNSEEN), 1)
        self._states = array("B", states.translate(_WITHOUT_SEEN))
        return [self._digest(slot) for slot in found]

    def sort(self) -> Iterator[None]:
        """Put what was loaded and not used since into its order; yields between short steps."""
        for _ in range(3):  # an index of indices of manifests is as deep as they get
            for count, slot in enumerate(array("I", self._lists)):
                self._age_together(slot, self._lists.get(slot, b""))
                if count % 250 == 0:
                    yield
        chunks = []
        for start in range(1, len(self._states), _SORT_CHUNK):
            chunk = range(start, min(start + _SORT_CHUNK, len(self._states)))
            chunks.append(sorted(chunk, key=self._used.__getitem__, reverse=True))
            yield
        merged = heapq.merge(*chunks, key=self._used.__getitem__, reverse=True)
        for count, slot in enumerate(merged):
            if self._states[slot] & _LOADED:
                self._states[slot] &= ~_LOADED
                self._unlink(slot)
                self._append(slot, before=self._warmer[_END])
            if count % 500 == 0:
                yield

    def _age_together(self, slot: int, listed: bytes) -> None:
        """Count a use of a manifest as a use of what it lists."""
        used = self._used[slot] + _AFTER
        for child in _slots_in(listed):
            if self._states[child] & _LOADED and self._used[child] < used:
                self._used[child] = used

    def _tree(self, top: int) -> list[int]:
        """Return held content and all below it that is held, each behind all that list it."""
        found: list[int] = []
        seen = {top}
        path = [(top, iter(self._listed(top)))]
        while path:
            slot, children = path[-1]
            new = (one for one in children if one not in seen and self._states[one] & _HELD)
            child = next(new, None)
            if child is None:
                found.append(slot)
                path.pop()
            else:
                seen.add(child)
                path.append((child, iter(self._listed(child))))
        return found[::-1]

    def _listed(self, slot: int) -> memoryview:
        return _slots_in(self._lists.get(slot, b""))

    def _warm(self, slots: list[int]) -> None:
        for slot in slots:
            self._unlink(slot)
            self._append(slot, before=_END)

    def _hold(self, record: BlobRecord, children: Iterable[Child]) -> int:
        children = tuple(children)
        if not all(0 <= size < _SIZES_END for size in (record.size, *(c.size for c in children))):
            raise ValueError(f"{record.digest}: a size is out of bounds")  # before anything changes
        self.pop(record.digest)
        slot = self._slot(record.digest)
        self._sizes[slot] = record.size
        self._used[slot] = record.used_at
        self._types[slot] = self._type_number(record.media_type)
        self._states[slot] = _HELD | (_PUBLIC if record.is_public else 0)
        self.files += 1
        self.disk_bytes += disk_bytes(record.size)
        listed = array("I")
        for entry in children:
            child = self._slot(entry.digest)
            if child != slot:
                if not self._states[child]:  # until it is held, each size is only a claim
                    known = self._sizes[child] if self._listings[child] else entry.size
                    self._sizes[child] = min(known, entry.size)
                self._listings[child] += 1
                listed.append(child)
        if listed:
            self._lists[slot] = listed.tobytes()
        return slot

    def _known(self, digest: Digest) -> int | None:
        key = _key(digest)
        return self._slots[key[0]].get(key)

    def _held(self, digest: Digest) -> int | None:
        slot = self._known(digest)
        return slot if slot is not None and self._states[slot] & _HELD else None

    def _record(self, slot: int) -> BlobRecord:
        return BlobRecord(
            self._digest(slot),
            self._sizes[slot],
            self._type_names[self._types[slot]],
            self._used[slot],
            self._states[slot] & _PUBLIC != 0,
        )

    def _slot(self, digest: Digest) -> int:
        key = _key(digest)
        slots = self._slots[key[0]]
        slot = slots.get(key)
        if slot is not None:
            return slot
        if self._free:
            slot = self._free.pop()
            self._keys[slot * _SHORT : (slot + 1) * _SHORT] = key[:_SHORT]
        else:
            slot = len(self._states)
            self._keys += key[:_SHORT]
            for column in (self._sizes, self._types, self._states, self._listings):
                column.append(0)
            self._used.append(0.0)
            self._labels.append(0)
            self._colder.append(_END)
            self._warmer.append(_END)
        if len(key) > _SHORT:
            self._long_keys[slot] = key
        slots[key] = slot
        return slot

    def _forget_unless_needed(self, slot: int) -> None:
        if not self._states[slot] and not self._listings[slot]:
            key = self._key(slot)
            del self._slots[key[0]][key]
            self._long_keys.pop(slot, None)
            self._labels[slot] = 0
            self._free.append(slot)

    def _key(self, slot: int) -> bytes:
        if slot in self._long_keys:
            return self._long_keys[slot]
        return bytes(self._keys[slot * _SHORT : (slot + 1) * _SHORT])

    def _digest(self, slot: int) -> Digest:
        key = self._key(slot)
        return Digest(f"sha{len(key) * 8}:{key.hex()}")

    def _type_number(self, media_type: str | None) -> int:
        number = self._type_numbers.get(media_type)
        if number is None:
            if len(self._type_names) > 0xFFFF:
                return 0
            number = self._type_numbers[media_type] = len(self._type_names)
            self._type_names.append(media_type)
        return number

    def _append(self, slot: int, *, before: int) -> None:
        colder = self._colder[before]
        self._colder[slot], self._warmer[slot] = colder, before
        self._warmer[colder] = slot
        self._colder[before] = slot

    def _unlink(self, slot: int) -> None:
        colder, warmer = self._colder[slot], self._warmer[slot]
        self._warmer[colder] = warmer
        self._colder[warmer] = colder


def _where(column: bytes | bytearray, byte: int) -> Iterator[int]:
    """Iterate over the slots whose byte this is, as fast as memory is read."""
    slot = column.find(byte)
    while slot >= 0:
        yield slot
        slot = column.find(byte, slot + 1)


def _slots_in(listed: bytes) -> memoryview:
    """Return the slots of a list that is kept as bytes."""
    return memoryview(listed).cast("I")


def _key(digest: Digest) -> bytes:
    return bytes.fromhex(digest.partition(":")[2])
