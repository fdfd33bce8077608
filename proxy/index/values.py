"""Conversion between values of the index and SQLite columns, and the checks of stored values.

Another program may have written the file, or the disk may have changed bits in it. Every value is
checked when it is read, before it can reach a header of a response. Digests are stored as raw
bytes: 32 for sha256, 64 for sha512.
"""

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any, Final, TypeVar

from proxy.core.errors import RegistryError
from proxy.core.manifests import MAX_CONTENT, is_media_type
from proxy.core.names import Digest, Repo, Tag, Target, parse_digest, parse_repo, parse_tag
from proxy.core.records import BlobRecord, Child, Descriptor, TagRecord

_MARKS: Final = 500

Row = tuple[Any, ...]
Name = TypeVar("Name")


class Unreadable(ValueError):
    """A stored value that this program has not written."""


def packed(digest: Digest) -> bytes:
    """Return a digest as it is stored."""
    return bytes.fromhex(digest.partition(":")[2])


def batches(keys: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield some keys at a time: the variables of a statement are limited."""
    iterator = iter(keys)
    while batch := list(islice(iterator, _MARKS)):
        yield batch


def marks(keys: Sequence[object]) -> str:
    """Return a placeholder for each key."""
    return ", ".join("?" * len(keys))


def digest(value: object) -> Digest:
    """Return a stored digest."""
    if type(value) is not bytes or len(value) not in (32, 64):
        raise Unreadable(f"{value!r:.50} is not a digest")
    return Digest(f"sha{len(value) * 8}:{value.hex()}")


def _parsed(parse: Callable[[str], Name], value: object) -> Name:
    try:
        return parse(text(value))
    except RegistryError as error:
        raise Unreadable(error.message) from None


def digest_text(value: object) -> Digest:
    """Return a digest that is stored as text."""
    return _parsed(parse_digest, value)


@lru_cache(maxsize=4096)
def target(upstream: object, name: object) -> Target:
    """Return a repository."""
    return Target(sys.intern(text(upstream)), Repo(sys.intern(_parsed(parse_repo, name))))


def tag(value: object) -> Tag:
    """Return a tag."""
    return _parsed(parse_tag, value)


def text(value: object) -> str:
    """Return a text."""
    if not isinstance(value, str):
        raise Unreadable(f"{value!r:.50} is not text")
    return value


def size(value: object) -> int:
    """Return a size in bytes."""
    if type(value) is not int or not 0 <= value <= MAX_CONTENT:
        raise Unreadable(f"{value!r:.50}: a size is out of bounds")
    return value


def seconds(value: object) -> float:
    """Return a time in Unix seconds."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise Unreadable(f"{value!r:.50} is not a time")
    return float(value)


def media_type(value: object) -> str:
    """Return a media type (RFC 6838 §4.2)."""
    if not is_media_type(found := text(value)):
        raise Unreadable(f"{value!r:.50} is not a media type")
    return sys.intern(found)


def blob(row: Row) -> BlobRecord:
    """Return the record in columns ``digest, size, media_type, used_at, is_public``."""
    key, length, kind, used_at, is_public = row
    known = None if kind is None else media_type(kind)
    return BlobRecord(digest(key), size(length), known, seconds(used_at), is_public == 1)


def children(listed: Iterable[Child] | None, of: BlobRecord) -> tuple[Child, ...] | None:
    """Return what content lists, each digest once; None if that is unknown.

    Raises ``Unreadable`` for a wrong size, also for that of the content.
    """
    size(of.size)
    if listed is None and of.media_type is not None:
        return None
    found = {entry.digest: Child(entry.digest, size(entry.size)) for entry in listed or ()}
    found.pop(of.digest, None)
    return tuple(found.values())


def tag_record(row: Row) -> TagRecord:
    """Return the record of a tag from columns ``media_type, digest, size, checked_at``."""
    kind, key, length, checked_at = row
    return TagRecord(Descriptor(media_type(kind), digest(key), size(length)), seconds(checked_at))


def descriptor(record: TagRecord | None) -> Descriptor | None:
    """Return the descriptor of a tag."""
    return None if record is None else record.descriptor


def entry(value: object) -> dict[str, object]:
    """Return a descriptor in JSON values."""
    found = json_text(value)
    if not isinstance(found, dict):
        raise Unreadable(f"{value!r:.50} is not an object")
    digest_text(found.get("digest"))
    return found


def json_text(value: object) -> Any:
    """Return the value of a JSON text."""
    try:
        return json.loads(text(value))
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{value!r:.50} is not JSON") from error
