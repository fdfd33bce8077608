"""The files of a bundle that other tools need: ``index.json`` and ``manifest.json``."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from proxy.core.manifests import INDEX_TYPES, OCI_INDEX
from proxy.core.names import Digest
from proxy.core.oci_layout import entry_of
from proxy.core.tolerant_json import as_list, read_object
from proxy.services.bundle.contents import BundledTag, Contents

DEFAULT_REGISTRY: Final = "docker.io"
MAX_LOADABLE: Final = 10_000
"""Maximum number of images in ``manifest.json``, because ``docker load`` is not for more."""


def blob_name(digest: Digest) -> str:
    """Return the name of a blob in a layout (image-spec ``image-layout.md``)."""
    algorithm, _, encoded = digest.partition(":")
    return f"blobs/{algorithm}/{encoded}"


def index_json(entries: Iterable[dict[str, object]]) -> bytes:
    """Return an ``index.json``."""
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [*entries]}
    return json.dumps(document, indent=1).encode() + b"\n"


OCI_LAYOUT: Final = b'{"imageLayoutVersion": "1.0.0"}'


def files_for_others(contents: Contents, bodies: Mapping[Digest, bytes]) -> dict[str, bytes]:
    """Return the files of a bundle that other tools read; ``bodies`` are those of its manifests.

    Tags whose manifest the bundle omits are omitted too.
    """
    files = {"oci-layout": OCI_LAYOUT}
    entries = []
    for one in contents.tags:
        descriptor = one.record.descriptor
        made = entry_of(one.image, descriptor)
        if made is None or not contents.blobs[descriptor.digest].is_included:
            continue
        entries.append(made.document)
        if made.wrapper is not None and made.wrapper.digest not in contents.blobs:
            files[blob_name(made.wrapper.digest)] = made.wrapper_body
    files["index.json"] = index_json(entries)
    if (loadable := _Loadable(contents, bodies).manifest_json()) is not None:
        files["manifest.json"] = loadable
    return files


class _Loadable:
    """Finds the files that ``docker load`` needs: for each tag one configuration, and its layers.

    Of an index it selects the first image that is complete in the bundle. Layers stay compressed;
    docker decompresses them.
    """

    def __init__(self, contents: Contents, bodies: Mapping[Digest, bytes]) -> None:
        self._contents = contents
        self._bodies = bodies

    def manifest_json(self) -> bytes | None:
        """Return a ``manifest.json``, None if no image is complete in the bundle."""
        entries: dict[Digest, dict[str, Any]] = {}
        for one in self._contents.tags[:MAX_LOADABLE]:
            found = self._image(one)
            if found is None:
                continue
            digest, config, layers = found
            entry = entries.setdefault(digest, {"Config": config, "RepoTags": [], "Layers": layers})
            entry["RepoTags"].append(_familiar(one))
        return json.dumps([*entries.values()], indent=1).encode() if entries else None

    def _image(self, one: BundledTag) -> tuple[Digest, str, list[str]] | None:
        """Return the digest of the image for a tag, and its files."""
        descriptor = one.record.descriptor
        digests = [descriptor.digest]
        if descriptor.media_type in INDEX_TYPES:
            listed = as_list(self._document(descriptor.digest).get("manifests"))
            digests = [_digest_of(entry) for entry in listed]
        for digest in digests:
            body = self._document(digest)
            config = _digest_of(body.get("config"))
            layers = [_digest_of(entry) for entry in as_list(body.get("layers"))]
            if layers and all(map(self._is_included, (config, *layers))):
                return digest, blob_name(config), [blob_name(layer) for layer in layers]
        return None

    def _document(self, digest: Digest) -> dict[str, object]:
        return read_object(self._bodies.get(digest, b"{}"))

    def _is_included(self, digest: Digest) -> bool:
        blob = self._contents.blobs.get(digest)
        return blob is not None and blob.is_included


def _digest_of(descriptor: object) -> Digest:
    return Digest(str(descriptor.get("digest")) if isinstance(descriptor, dict) else "")


def _familiar(one: BundledTag) -> str:
    """Return a name as docker writes it: ``nginx:1.27`` for Docker Hub."""
    if one.target.upstream != DEFAULT_REGISTRY:
        return one.name
    return f"{one.target.repo.removeprefix('library/')}:{one.tag}"
