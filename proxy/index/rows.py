"""The format of the index's rows. What is not as this program writes it raises.

Others may have written the files: each value is checked before it reaches the columns of the ledger
or a header of an answer. A row that raises is deleted and counted by ``index.table``.
"""

import math
import sys
from functools import lru_cache
from typing import Any, NamedTuple

from proxy.core.errors import RegistryError
from proxy.core.manifests import MAX_CONTENT, is_media_type
from proxy.core.names import Digest, Repo, Tag, Target, parse_digest, parse_repo, parse_tag
from proxy.core.records import (
    BlobRecord,
    Child,
    Descriptor,
    ReferrersRecord,
    TagHistoryEntry,
    TagRecord,
)


class Held(NamedTuple):
    """A row of held content; ``children`` None: what it lists is not known."""

    record: BlobRecord
    children: tuple[Child, ...] | None


class Pointed(NamedTuple):
    """A row of a tag without its name: where it points, if it still does, and its history."""

    record: TagRecord | None
    history: list[TagHistoryEntry]


class Tagged(NamedTuple):
    """A row of where a tag points, if it still does, and when it was last seen."""

    target: Target
    tag: Tag
    record: TagRecord | None
    seen_at: float


class Referred(NamedTuple):
    """A row of what refers to a manifest, without the referrers."""

    target: Target
    subject: Digest
    checked_at: float


class Referrers(NamedTuple):
    """What refers to a manifest: as upstream says (None: never asked), and held here."""

    checked_at: float | None
    told: list[dict[str, object]]
    held: list[dict[str, object]]

    @property
    def record(self) -> ReferrersRecord:
        """All of it, each manifest once."""
        known = {entry["digest"] for entry in self.told}
        others = (entry for entry in self.held if entry["digest"] not in known)
        return ReferrersRecord((*self.told, *others), self.checked_at)


def digest(value: object) -> Digest:
    """Return a digest. Raises ``ValueError``."""
    try:
        return parse_digest(_text(value))
    except RegistryError as error:
        raise ValueError(error.message) from None


@lru_cache(maxsize=4096)  # most rows are about few repositories
def target(name: object, repo: object) -> Target:
    """Return an upstream and a repository. Raises ``ValueError``."""
    try:
        return Target(sys.intern(_text(name)), Repo(sys.intern(parse_repo(_text(repo)))))
    except RegistryError as error:
        raise ValueError(error.message) from None


def pointed(row: Any) -> Pointed:
    """Return where a tag points."""
    now, history = row
    sightings = [
        TagHistoryEntry(digest(seen), _time(first), _time(last)) for seen, first, last in history
    ]
    if now is None:
        return Pointed(None, sightings)
    media_type, about, size, checked_at = now
    descriptor = Descriptor(_type(media_type), digest(about), _size(size))
    return Pointed(TagRecord(descriptor, _time(checked_at)), sightings)


def tagged(key: Any, row: Any) -> Tagged:
    """Return a tag and where it points."""
    name, repo, tag = key
    found = pointed(row)
    seen_at = found.history[-1].last_seen if found.history else 0.0
    try:
        return Tagged(target(name, repo), parse_tag(_text(tag)), found.record, seen_at)
    except RegistryError as error:
        raise ValueError(error.message) from None


def tag_row(record: TagRecord | None, history: list[TagHistoryEntry]) -> list[object]:
    """Return the row of where a tag points, and pointed."""
    now = None
    if record is not None:
        about = record.descriptor
        now = [about.media_type, about.digest, about.size, record.checked_at]
    return [now, [[entry.digest, entry.first_seen, entry.last_seen] for entry in history]]


def referrers(row: Any) -> Referrers:
    """Return what refers to a manifest."""
    checked_at, told, held = row
    for entry in (*told, *held):
        digest(entry["digest"])
    return Referrers(None if checked_at is None else _time(checked_at), told, held)


def referred(key: Any, row: Any) -> Referred:
    """Return what something refers to."""
    name, repo, subject = key
    return Referred(target(name, repo), digest(subject), _time(row[0] or 0.0))


def holders(row: Any) -> list[Target]:
    """Return the repositories that hold something."""
    return [target(name, repo) for name, repo in row]


def held(key: Any, row: Any) -> Held:
    """Return held content. What it lists is not known when that alone cannot be read.

    Rows of the first layout have no children.
    """
    size, media_type, used_at, *rest = row
    record = BlobRecord(
        digest(key),
        _size(size),
        None if media_type is None else _type(media_type),
        _time(used_at),
        is_public=len(rest) > 1 and rest[1] is True,  # older rows end before it
    )
    try:
        children = tuple(Child(digest(child), _size(size)) for child, size in rest[0])
    except (ValueError, TypeError, LookupError):
        return Held(record, None)
    return Held(record, children)


def held_row(held: Held) -> list[object]:
    """Return the row of held content."""
    record, children = held
    listed = None if children is None else [list(child) for child in children]
    return [record.size, record.media_type, record.used_at, listed, record.is_public]


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r:.50} is no text")
    return value


def _type(value: object) -> str:
    if not is_media_type(media_type := _text(value)):
        raise ValueError(f"{value!r:.50} is no media type")
    return sys.intern(media_type)


def _size(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_CONTENT:
        raise ValueError(f"{value!r:.50} is no size")
    return value


def _time(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{value!r:.50} is no time")
    return float(value)
