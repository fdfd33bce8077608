"""What a manifest says: its media type and the content it lists. Reads, never rewrites.

image-spec ``manifest.md`` and ``image-index.md``; Docker's manifest v2 schema 2.
Parsing is best effort: whatever upstream serves as a manifest is passed on byte for byte.
"""

import base64
import json
import re
from typing import Final, NamedTuple

from proxy.documents import as_list, read_object
from proxy.errors import DigestInvalid
from proxy.names import Digest, parse_digest
from proxy.records import Child, Descriptor

OCI_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST: Final = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST: Final = "application/vnd.docker.distribution.manifest.list.v2+json"
OCI_ARTIFACT: Final = "application/vnd.oci.artifact.manifest.v1+json"
SCHEMA1: Final = "application/vnd.docker.distribution.manifest.v1+json"
SCHEMA1_SIGNED: Final = "application/vnd.docker.distribution.manifest.v1+prettyjws"

INDEX_TYPES: Final = frozenset({OCI_INDEX, DOCKER_LIST})
"""Types of manifests that list manifests, of which a client wants one."""

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


class Children(NamedTuple):
    """What a manifest needs: other manifests (an index) and blobs (an image)."""

    manifests: tuple[Descriptor, ...] = ()
    blobs: tuple[Descriptor, ...] = ()


def children(body: bytes) -> Children:
    """Return the content that a manifest lists; empty for what is not understood.

    Blobs with ``urls`` are left out: they may live outside the registry.
    """
    document = read_object(body)
    entries = as_list(document.get("manifests"))
    layers = [
        document.get("config"),
        *as_list(document.get("layers")),
        *as_list(document.get("blobs")),
    ]
    return Children(
        tuple(found for entry in entries if (found := _descriptor(entry))),
        tuple(found for layer in layers if (found := _descriptor(layer))),
    )


def listed(body: bytes) -> tuple[Child, ...]:
    """Return all that a manifest lists, each once, manifests first."""
    found = children(body)
    sizes = {child.digest: child.size for child in (*found.manifests, *found.blobs)}
    return tuple(Child(digest, size) for digest, size in sizes.items())


def own_type(body: bytes) -> str | None:
    """Return the type that a manifest gives itself."""
    own = read_object(body).get("mediaType")
    return own if isinstance(own, str) and is_media_type(own) else None


def implied_type(body: bytes) -> str:
    """Return the type that a manifest's shape implies."""
    document = read_object(body)
    if document.get("schemaVersion") == 1:
        return SCHEMA1_SIGNED if "signatures" in document else SCHEMA1
    return OCI_INDEX if "manifests" in document else OCI_MANIFEST


def is_media_type(text: str) -> bool:
    """Tell whether ``text`` may stand in a header (RFC 6838 §4.2)."""
    return _MEDIA_TYPE.fullmatch(text) is not None


def is_manifest(body: bytes) -> bool:
    """Tell a manifest from a login page: it is a JSON object with a version or a type."""
    document = read_object(body)
    return "schemaVersion" in document or "mediaType" in document


class Subject(NamedTuple):
    """What a manifest refers to, and how a list of referrers describes it."""

    digest: Digest
    entry: dict[str, object]


def subject(descriptor: Descriptor, body: bytes) -> Subject | None:
    """Return what a manifest refers to, if anything (distribution-spec "Listing Referrers").

    The entry's type is the manifest's own, else that of its config.
    """
    document = read_object(body)
    referred = _descriptor(document.get("subject"))
    if referred is None:
        return None
    config = document.get("config")
    fallback = config.get("mediaType") if isinstance(config, dict) else None
    entry: dict[str, object] = {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
    if artifact_type := document.get("artifactType") or fallback:
        entry["artifactType"] = artifact_type
    if annotations := document.get("annotations"):
        entry["annotations"] = annotations
    return Subject(referred.digest, entry)


def is_index(body: bytes) -> bool:
    """Tell whether this is a list of manifests, be it empty."""
    return isinstance(read_object(body).get("manifests"), list)


def referrers_of(body: bytes) -> list[dict[str, object]]:
    """Return the descriptors in an index of referrers; what is none is left out."""
    return referrers_in(read_object(body))


def referrers_in(document: dict[str, object]) -> list[dict[str, object]]:
    """Return the descriptors in a parsed index of referrers; other values are left out."""
    entries = as_list(document.get("manifests"))
    return [entry for entry in entries if isinstance(entry, dict) and _descriptor(entry)]


def signed_payload(body: bytes) -> bytes | None:
    """Return what a signed schema 1 manifest signs, which its digest is of; None for others.

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


def _descriptor(value: object) -> Descriptor | None:
    if not isinstance(value, dict) or value.get("urls"):
        return None
    digest, size = value.get("digest"), value.get("size")
    if not isinstance(digest, str) or not isinstance(size, int) or size < 0:
        return None
    try:
        return Descriptor(str(value.get("mediaType", "")), parse_digest(digest), size)
    except DigestInvalid:
        return None
