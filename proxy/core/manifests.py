"""The media type of a manifest, the content that it lists, and the walk over that content.

image-spec ``manifest.md`` and ``image-index.md``; Docker's manifest v2 schema 2.
Reads, never rewrites. Parsing is best effort: clients get a manifest byte for byte as upstream
sent it.
"""

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from proxy.core.errors import DigestInvalid
from proxy.core.names import Digest, parse_digest
from proxy.core.records import Child, Descriptor
from proxy.core.tolerant_json import as_list, is_bounded, read_object

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
"""Types of manifests that list manifests, of which a client wants one."""

MAX_WEIGHED_DEPTH: Final = 8
"""Maximum depth of manifests that are weighed. An image below an index has a depth of 1."""

ACCEPT: Final = ", ".join(
    [
        OCI_INDEX,
        OCI_MANIFEST,
        DOCKER_LIST,
        DOCKER_MANIFEST,
        OCI_ARTIFACT,
        f"{SCHEMA1_SIGNED};q=0.5",
        f"{SCHEMA1};q=0.5",
        "*/*;q=0.1",
    ]
)
"""Always the full set: some registries answer 404 to one that leaves the stored type out."""

_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w.+-]{0,126}/[A-Za-z0-9][\w.+-]{0,126}", re.ASCII)

MAX_SIZE: Final = 8 * 1024 * 1024
"""Bytes. The most that any known client reads is 8 MiB (regclient); most stop at 4 MiB."""


_MARGIN: Final = 100
_LONGEST_TYPE: Final = 512

MAX_LISTED: Final = 4096
"""Descriptors of one manifest that are followed. The largest index in use lists some hundreds."""

MAX_CONTENT: Final = 1 << 60
"""Bytes, 1 EiB. A descriptor with a greater size is not understood."""

MAX_ENTRY: Final = 32 * 1024
"""Bytes of the annotations that a list of referrers repeats from a manifest; more are left out."""


class Children(NamedTuple):
    """The children of a manifest: other manifests (an index) and blobs (an image)."""

    manifests: tuple[Child, ...] = ()
    blobs: tuple[Child, ...] = ()

    @property
    def listed(self) -> tuple[Child, ...]:
        """Both, each once, manifests first."""
        sizes = dict((*self.manifests, *self.blobs))
        return tuple(Child(digest, size) for digest, size in sizes.items())


class Subject(NamedTuple):
    """The subject of a manifest, and the manifest's entry in a list of referrers."""

    digest: Digest
    described: dict[str, object]

    def entry(self, descriptor: Descriptor) -> dict[str, object]:
        """Return the entry in a list of referrers (distribution-spec "Listing Referrers")."""
        return {
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
            **self.described,
        }


@dataclass(frozen=True, slots=True)
class ManifestContent:
    """The content of a manifest.

    ``own_type`` is its ``mediaType``, ``implied_type`` the type that its shape implies.
    ``children`` is None if any listed descriptor is not understood: a client may need more.
    """

    own_type: str | None
    implied_type: str
    is_manifest: bool
    children: Children | None
    subject: Subject | None

    @property
    def listed(self) -> tuple[Child, ...] | None:
        """All that a manifest lists, each once, manifests first; None when it is not known."""
        return None if self.children is None else self.children.listed


def read(body: bytes) -> ManifestContent:
    """Return the content of a manifest. Raises nothing, whatever the body.

    Takes up to 60 ms for 8 MiB: parse more than ``executors.LARGE`` bytes in a thread.
    """
    if not is_bounded(body):
        has_begun = body[:_MARGIN].lstrip().startswith(b"{")
        return ManifestContent(None, OCI_MANIFEST, has_begun, children=None, subject=None)
    document = read_object(body)
    own = document.get("mediaType")
    return ManifestContent(
        own_type=own if isinstance(own, str) and is_media_type(own) else None,
        implied_type=_implied_type(document),
        is_manifest="schemaVersion" in document or "mediaType" in document,
        children=_children(document) if document else None,
        subject=_subject(document),
    )


class Node(NamedTuple):
    """One step of a walk: content, the manifest that lists it (None for a root), and its depth."""

    digest: Digest
    parent: Digest | None
    depth: int


Listing = Callable[[Digest], Awaitable[Iterable[Digest]]]
"""Returns the digests that a manifest lists; none for a blob."""

_TURN: Final = 250
"""Nodes that a walk visits before other tasks run."""


async def walk(
    roots: Iterable[Digest], listing: Listing, *, max_depth: int = 1 << 30
) -> AsyncIterator[Node]:
    """Yield the roots and everything below them, each once, a manifest before its children.

    ``listing`` is called once for each node of less than ``max_depth``, after the node has been
    yielded. A manifest that lists itself, directly or not, does no harm.
    """
    todo = [Node(root, None, 0) for root in roots][::-1]
    seen: set[Digest] = set()
    while todo:
        node = todo.pop()
        if node.digest in seen:
            continue
        seen.add(node.digest)
        yield node
        if len(seen) % _TURN == 0:
            await asyncio.sleep(0)
        if node.depth < max_depth:
            below = [child for child in await listing(node.digest) if child not in seen]
            todo += [Node(child, node.digest, node.depth + 1) for child in below[::-1]]


def read_referrers(body: bytes) -> list[dict[str, object]] | None:
    """Return the descriptors in an index of referrers; None for anything but an index.

    An entry that is no descriptor is left out, and so are fields of a wrong type.
    """
    return referrers_in(read_object(body))


def referrers_in(document: dict[str, object]) -> list[dict[str, object]] | None:
    """Return what ``read_referrers`` does, from a parsed document."""
    entries = document.get("manifests")
    if not isinstance(entries, list):
        return None
    return [found for entry in entries if (found := _referrer(entry))]


def read_descriptor(value: object) -> Descriptor | None:
    """Return a descriptor (image-spec ``descriptor.md``); None for one that is not understood."""
    child = _child(value)
    media_type = value.get("mediaType") if isinstance(value, dict) else None
    if child is None or not isinstance(media_type, str) or not is_media_type(media_type):
        return None
    return Descriptor(media_type, child.digest, child.size)


def is_media_type(text: str) -> bool:
    """Return True if ``text`` is allowed in a header (RFC 6838 §4.2)."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def signed_payload(body: bytes) -> bytes | None:
    """Return the payload of a signed schema 1 manifest, which its digest is of; None for others.

    Each signature's protected header says how many bytes of the document come before the
    signatures, and what ends the payload (distribution ``docs/spec/manifest-v2-1.md``).
    """
    try:
        [signature, *_] = as_list(read_object(body).get("signatures"))
        protected = json.loads(_base64(signature["protected"]))  # type: ignore[index]
        length = protected["formatLength"]
        return body[:length] + _base64(protected["formatTail"])
    except (ValueError, LookupError, TypeError):
        return None


def _base64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))


def _implied_type(document: dict[str, object]) -> str:
    if document.get("schemaVersion") == 1:
        return SCHEMA1_SIGNED if "signatures" in document else SCHEMA1
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST


def _children(document: dict[str, object]) -> Children | None:
    """Return the listed content; None if any of it is not understood, or it is too much.

    Descriptors with ``urls`` are left out: that content may be outside the registry.
    """
    manifests = _entries(document.get("manifests"))
    layers, blobs = _entries(document.get("layers")), _entries(document.get("blobs"))
    if manifests is None or layers is None or blobs is None:
        return None
    config = document.get("config")
    needed = [*([] if config is None else [config]), *layers, *blobs]
    if len(manifests) + len(needed) > MAX_LISTED:
        return None
    below = [_child(entry) for entry in manifests if not _is_foreign(entry)]
    content = [_child(entry) for entry in needed if not _is_foreign(entry)]
    found = Children(
        tuple(child for child in below if child), tuple(child for child in content if child)
    )
    return found if len(found.manifests) + len(found.blobs) == len(below) + len(content) else None


def _entries(value: object) -> list[object] | None:
    """Return a list of descriptors, empty for one that is not there; None for anything else."""
    return [] if value is None else value if isinstance(value, list) else None


def _is_foreign(entry: object) -> bool:
    return isinstance(entry, dict) and bool(entry.get("urls"))


def _child(value: object) -> Child | None:
    """Return the content that a descriptor names; None for one that is not understood.

    Its size must be an integer from 0 to 1 EiB, because it is stored in 64 bits.
    """
    if not isinstance(value, dict):
        return None
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or type(size) is not int or not 0 <= size <= MAX_CONTENT:
        return None
    try:
        return Child(parse_digest(digest), size)
    except DigestInvalid:
        return None


def _subject(document: dict[str, object]) -> Subject | None:
    """Return the subject of a manifest, None without one.

    The type in its entry is the manifest's own, else that of its config.
    """
    referred = _child(document.get("subject"))
    if referred is None:
        return None
    config = document.get("config")
    fallback = config.get("mediaType") if isinstance(config, dict) else None
    described: dict[str, object] = {}
    for artifact_type in (document.get("artifactType"), fallback):
        if isinstance(artifact_type, str) and 0 < len(artifact_type) <= _LONGEST_TYPE:
            described["artifactType"] = artifact_type
            break
    annotations = _annotations(document.get("annotations"))
    if annotations and sum(len(key) + len(text) for key, text in annotations.items()) <= MAX_ENTRY:
        described["annotations"] = annotations
    return Subject(referred.digest, described)


def _referrer(value: object) -> dict[str, object] | None:
    """Return an entry of a list of referrers, without fields of a wrong type."""
    if not isinstance(value, dict) or _is_foreign(value) or _child(value) is None:
        return None
    entry: dict[str, object] = dict(value)
    for name in ("mediaType", "artifactType"):
        if not isinstance(entry.get(name, ""), str):
            del entry[name]
    if "annotations" in entry:
        entry["annotations"] = _annotations(entry["annotations"])
    return entry


def _annotations(value: object) -> dict[str, str]:
    if not isinstance(value, dict):
        return {}
    return {key: text for key, text in value.items() if isinstance(text, str)}
