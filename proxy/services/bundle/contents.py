"""The contents file of a bundle: its blobs, the blobs that it omits, and its tags.

It is signed, so it authenticates every blob by digest. Unknown fields are ignored: a later version
may add some.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from proxy.core.errors import RegistryError, RequestInvalid
from proxy.core.manifests import is_media_type
from proxy.core.names import Digest, Image, Tag, Target, parse_digest, parse_repo, parse_tag
from proxy.core.records import Descriptor, TagHistoryEntry, TagRecord
from proxy.core.tolerant_json import as_list

NAME: Final = "contents.json"
SIGNATURE: Final = "contents.json.sig"
FORMAT: Final = "millpond-bundle"
VERSION: Final = 1
MAX_BYTES: Final = 512 * 1024 * 1024
"""Bytes of a contents file. A blob takes about 150."""

MAX_HISTORY: Final = 1000
_MAX_SIZE: Final = 1 << 60
_MAX_TIME: Final = 1e11


@dataclass(frozen=True, slots=True)
class BundledBlob:
    """Content of a bundle; ``is_included`` False: omitted, because the other side has it.

    ``media_type`` is None for content that is not a manifest. ``is_public``: its registry serves it
    to every client.
    """

    digest: Digest
    size: int
    media_type: str | None
    is_public: bool
    is_included: bool = True


@dataclass(frozen=True, slots=True)
class BundledTag:
    """A tag with its history, oldest first."""

    target: Target
    tag: Tag
    record: TagRecord
    history: tuple[TagHistoryEntry, ...] = ()

    @property
    def name(self) -> str:
        """Its full name, with the registry."""
        return str(self.image)

    @property
    def image(self) -> Image:
        """The image that it names."""
        return Image(self.target, self.tag, None)


@dataclass(slots=True)
class Contents:
    """The contents of a bundle. ``links`` lists which repository may serve which blobs.

    ``source`` and ``creator`` are text for people, ``created_at`` is in Unix seconds.
    """

    source: str
    creator: str
    created_at: float
    blobs: dict[Digest, BundledBlob] = field(default_factory=dict)
    tags: list[BundledTag] = field(default_factory=list)
    links: dict[Target, list[Digest]] = field(default_factory=dict)
    pins: list[str] = field(default_factory=list)
    files: dict[str, Digest] = field(default_factory=dict)
    """Further files of the bundle, for other tools, with their digests."""

    @property
    def included(self) -> Iterator[BundledBlob]:
        """The blobs that are in the bundle, manifests first, in the order of the file."""
        blobs = [blob for blob in self.blobs.values() if blob.is_included]
        yield from (blob for blob in blobs if blob.media_type is not None)
        yield from (blob for blob in blobs if blob.media_type is None)

    @property
    def left_out(self) -> Iterator[BundledBlob]:
        """The blobs that the other side must have."""
        return (blob for blob in self.blobs.values() if not blob.is_included)

    def without(self, held: Iterable[Digest]) -> None:
        """Omit the blobs that the other side has."""
        for digest in held:
            if (blob := self.blobs.get(digest)) is not None:
                self.blobs[digest] = BundledBlob(
                    blob.digest, blob.size, blob.media_type, blob.is_public, is_included=False
                )

    def to_json(self) -> bytes:
        """Return the file, with one entry a line."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "source": self.source,
            "creator": self.creator,
            "created_at": self.created_at,
            "pins": self.pins,
            "files": self.files,
            "blobs": [_blob_json(blob) for blob in self.blobs.values()],
            "tags": [_tag_json(tag) for tag in self.tags],
            "links": {str(target): digests for target, digests in self.links.items()},
        }
        return json.dumps(document, indent=1).encode() + b"\n"


def parse(text: bytes) -> Contents:
    """Return the contents that a file describes. Raises ``RequestInvalid``."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestInvalid(f"{NAME}: not JSON") from None
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise RequestInvalid(f"{NAME}: not the contents file of a bundle")
    if document.get("version") != VERSION:
        raise RequestInvalid(
            f"{NAME}: version {document.get('version')!r} is not known here; a newer Millpond "
            "wrote it"
        )
    try:
        return _parsed(document)
    except AttributeError:
        raise RequestInvalid(f"{NAME}: an entry is no object") from None
    except (KeyError, TypeError, ValueError, ArithmeticError, RegistryError) as error:
        raise RequestInvalid(f"{NAME}: {_reason(error)}") from None


def _parsed(document: dict[str, Any]) -> Contents:
    blobs = [_blob(entry) for entry in as_list(document["blobs"])]
    found = Contents(
        source=str(document.get("source", ""))[:1000],
        creator=str(document.get("creator", ""))[:1000],
        created_at=_time(document.get("created_at", 0)),
        blobs={blob.digest: blob for blob in blobs},
        tags=[_tag(entry) for entry in as_list(document["tags"])],
        links={_target(name): _digests(listed) for name, listed in document["links"].items()},
        pins=[str(pin)[:1024] for pin in as_list(document.get("pins"))],
        files={name: parse_digest(one) for name, one in dict(document.get("files", {})).items()},
    )
    if len(found.blobs) < len(blobs):
        raise ValueError("a blob is listed twice")
    unknown = {one.record.descriptor.digest for one in found.tags} - found.blobs.keys()
    unknown |= {digest for listed in found.links.values() for digest in listed} - found.blobs.keys()
    if unknown:
        raise ValueError(f"{min(unknown)} is named and not among the blobs")
    return found


def _blob_json(blob: BundledBlob) -> dict[str, object]:
    entry: dict[str, object] = {"digest": blob.digest, "size": blob.size}
    if blob.media_type is not None:
        entry["media_type"] = blob.media_type
    if blob.is_public:
        entry["public"] = True
    if not blob.is_included:
        entry["included"] = False
    return entry


def _blob(entry: Any) -> BundledBlob:
    media_type, size = entry.get("media_type"), entry["size"]
    if media_type is not None and not (isinstance(media_type, str) and is_media_type(media_type)):
        raise ValueError(f"{media_type!r} is no media type")
    if type(size) is not int or not 0 <= size <= _MAX_SIZE:
        raise ValueError(f"{size!r} is no size")
    return BundledBlob(
        parse_digest(entry["digest"]),
        size,
        media_type,
        is_public=entry.get("public") is True,
        is_included=entry.get("included", True) is True,
    )


def _tag_json(one: BundledTag) -> dict[str, object]:
    about = one.record.descriptor
    return {
        "image": one.name,
        "media_type": about.media_type,
        "digest": about.digest,
        "size": about.size,
        "checked_at": one.record.checked_at,
        "history": [
            {"digest": past.digest, "first_seen": past.first_seen, "last_seen": past.last_seen}
            for past in one.history
        ],
    }


def _tag(entry: Any) -> BundledTag:
    name, _, tag = str(entry["image"]).rpartition(":")
    media_type, size = entry["media_type"], entry["size"]
    if not isinstance(media_type, str) or not is_media_type(media_type) or type(size) is not int:
        raise ValueError(f"{entry['image']}: no descriptor")
    history = as_list(entry.get("history"))
    if len(history) > MAX_HISTORY:
        raise ValueError(f"{entry['image']}: a history with more than {MAX_HISTORY} entries")
    descriptor = Descriptor(media_type, parse_digest(entry["digest"]), size)
    return BundledTag(
        _target(name),
        parse_tag(tag),
        TagRecord(descriptor, _time(entry["checked_at"])),
        tuple(_past(past) for past in history),
    )


def _past(entry: Any) -> TagHistoryEntry:
    first, last = _time(entry["first_seen"]), _time(entry["last_seen"])
    return TagHistoryEntry(parse_digest(entry["digest"]), first, last)


def _target(name: str) -> Target:
    upstream, slash, repository = name.partition("/")
    if not slash or not upstream.isascii() or not upstream.isprintable():
        raise ValueError(f"{name[:80]!r} has no registry")
    return Target(upstream, parse_repo(repository))


def _digests(listed: Any) -> list[Digest]:
    return [parse_digest(str(digest)) for digest in as_list(listed)]


def _time(value: Any) -> float:
    seconds = float(value)
    if not 0 <= seconds <= _MAX_TIME:
        raise ValueError(f"{value!r} is no time")
    return seconds


def _reason(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"{error.args[0]!r} is missing"
    return error.message if isinstance(error, RegistryError) else str(error)
