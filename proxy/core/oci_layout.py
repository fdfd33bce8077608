"""The images in ``index.json`` of an OCI image layout (image-spec ``image-layout.md``)."""

import json
import re
from collections.abc import Iterator
from io import BytesIO
from typing import Final, NamedTuple

from proxy.core import manifests
from proxy.core.errors import RegistryError
from proxy.core.names import Image, Tag, Target, parse_digest, parse_repo, parse_tag, sha256
from proxy.core.records import Descriptor
from proxy.core.tolerant_json import as_list, read_large_object, read_object

NAME: Final = "org.opencontainers.image.ref.name"
OURS: Final = "dev.millpond.image"
TRUE: Final = f"{OURS}.manifest"
"""The descriptor from upstream, if readers of the layout need another one."""

BEGIN: Final = ', "manifests": [\n'
NEXT: Final = b",\n"
END: Final = b"\n]}\n"
"""Every entry has its own line, so that many are read and written in small steps."""


_ALPHANUMERIC: Final = r"[A-Za-z0-9]+"
_COMPONENT: Final = rf"{_ALPHANUMERIC}(?:(?:[-._:@+]|--){_ALPHANUMERIC})*"
_READABLE: Final = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
"""Names in a layout that containers/image accepts (``oci/internal/oci_util.go``)."""


class Entry(NamedTuple):
    """An entry of ``index.json``, and the index that it names if it cannot name the manifest."""

    document: dict[str, object]
    wrapper: Descriptor | None = None
    wrapper_body: bytes = b""


class NamedImage(NamedTuple):
    """An image that a layout names; ``tag`` is None for one named by its digest."""

    target: Target
    tag: Tag | None
    descriptor: Descriptor


def entries(content: bytes) -> Iterator[object]:
    """Iterate over the entries of an ``index.json``, line by line if Millpond wrote it.

    So no step takes long, whatever the number of images.
    """
    head, begin, lines = content.partition(BEGIN.encode())
    if begin and lines.endswith(END) and read_object(head + b"}"):
        return _lines(BytesIO(lines))
    return iter(as_list(read_large_object(content).get("manifests")))


def entry_of(image: Image, descriptor: Descriptor) -> Entry | None:
    """Return the entry of an image; None for a type that the layout cannot name.

    Readers accept OCI types only. A Docker list can be read as an OCI index under that type; a
    Docker manifest cannot, so it is wrapped in an index of one manifest, without a platform so that
    any reader takes it.
    """
    names = {OURS: str(image)}
    if _READABLE.fullmatch(str(image)):
        names[NAME] = str(image)
    elif _READABLE.fullmatch(by_digest := f"{image.target}@{descriptor.digest}"):
        names[NAME] = by_digest
    match descriptor.media_type:
        case manifests.OCI_MANIFEST | manifests.OCI_INDEX:
            return Entry(_json(descriptor) | {"annotations": names})
        case manifests.DOCKER_LIST:
            names[TRUE] = json.dumps(_json(descriptor))
            shown = Descriptor(manifests.OCI_INDEX, descriptor.digest, descriptor.size)
            return Entry(_json(shown) | {"annotations": names})
        case manifests.DOCKER_MANIFEST:
            names[TRUE] = json.dumps(_json(descriptor))
            body = wrapping(descriptor)
            wrapper = Descriptor(manifests.OCI_INDEX, sha256(body), len(body))
            return Entry(_json(wrapper) | {"annotations": names}, wrapper, body)
    return None


def wrapping(descriptor: Descriptor) -> bytes:
    """Return an index of one manifest."""
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.OCI_INDEX,
        "manifests": [_json(descriptor)],
    }
    return json.dumps(document).encode()


def named_image(entry: object) -> NamedImage | None:
    """Return the image that an entry names, None if the name has no registry or is invalid."""
    known = annotations(entry)
    name = str(known.get(OURS) or known.get(NAME) or "")
    by_digest = name.partition("@")
    try:
        if by_digest[1]:
            path, tag, digest = by_digest[0], None, parse_digest(by_digest[2])
        else:
            path, _, text = name.rpartition(":")
            tag, digest = parse_tag(text), None
        upstream, slash, repo = path.partition("/")
        about = json.loads(str(known[TRUE])) if TRUE in known else entry
        descriptor = manifests.read_descriptor(about)
        if descriptor is None or not slash or digest not in (None, descriptor.digest):
            return None
        return NamedImage(Target(upstream, parse_repo(repo)), tag, descriptor)
    except (RegistryError, ValueError, RecursionError):
        return None


def annotations(document: object) -> dict[str, object]:
    """Return the annotations of an index or of an entry."""
    found = document.get("annotations") if isinstance(document, dict) else None
    return found if isinstance(found, dict) else {}


def _lines(lines: BytesIO) -> Iterator[object]:
    for line in lines:
        entry = read_object(line.rstrip(NEXT))
        if entry:
            yield entry


def _json(descriptor: Descriptor) -> dict[str, object]:
    return {
        "mediaType": descriptor.media_type,
        "digest": descriptor.digest,
        "size": descriptor.size,
    }
