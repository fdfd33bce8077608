"""Reads images that other tools have written: OCI layouts, ``docker save``, ``registry:2``.

Blobs keep their digests. The old format of ``docker save`` has no manifests: this module creates
them, so the digests of these images differ from those at their registry.
"""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from proxy.core import manifests
from proxy.core.errors import RegistryError, RequestInvalid
from proxy.core.manifests import DOCKER_MANIFEST, ManifestContent
from proxy.core.names import Digest, Tag, Target, parse_digest, parse_repo, parse_tag, sha256
from proxy.core.oci_layout import NAME, annotations, named_image
from proxy.core.records import Descriptor, TagHistoryEntry, TagRecord
from proxy.core.tolerant_json import as_list, read_large_object
from proxy.services.bundle.contents import BundledBlob, BundledTag, Contents
from proxy.services.bundle.layout import blob_name
from proxy.services.bundle.trees import DirectoryTree, Tree, read_file

MAX_INDEX: Final = 64 * 1024 * 1024
MAX_DEPTH: Final = 8
STEP: Final = 1024 * 1024
_REGISTRY: Final = "docker/registry/v2"
_CONFIG: Final = "application/vnd.docker.container.image.v1+json"
_LAYER: Final = "application/vnd.docker.image.rootfs.diff.tar"
_CONTAINERD_NAME: Final = "io.containerd.image.name"
_HEX: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Naming:
    """Names for images without a full one: the name of one image, the registry of repositories."""

    image: str | None = None
    upstream: str = "docker.io"

    def target(self, name: str) -> Target:
        """Return the repository of a name, completed as docker does."""
        first, slash, rest = name.partition("/")
        if slash and ("." in first or ":" in first or first == "localhost"):
            return Target("docker.io" if first == "index.docker.io" else first, parse_repo(rest))
        if self.upstream == "docker.io" and not slash:
            name = f"library/{name}"
        return Target(self.upstream, parse_repo(name))


class Bytes:
    """A file in memory."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self.size = len(content)

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes."""
        return self._content[start:stop]

    def close(self) -> None:
        """Do nothing."""


@dataclass(slots=True)
class FoundImages:
    """Images that another tool has written, and the problems with them."""

    kind: str
    contents: Contents
    places: dict[Digest, str | bytes] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def read(tree: Tree, path: Path, naming: Naming) -> FoundImages:
    """Return the images at a path. Blocks. Raises ``RequestInvalid`` for an unknown format."""
    seen_at = path.stat().st_mtime if path.exists() else 0.0
    found = FoundImages("", Contents(str(path), "", seen_at))
    if (root := _registry_root(tree)) is not None and isinstance(tree, DirectoryTree):
        found.kind = "the storage of a registry"
        _read_registry(tree, root, naming, found)
    elif (index := read_file(tree, "index.json", MAX_INDEX)) is not None:
        found.kind = "an OCI layout"
        _read_layout(tree, index, naming, found)
    elif (listed := read_file(tree, "manifest.json", MAX_INDEX)) is not None:
        found.kind = "an archive of docker save"
        _read_docker_archive(tree, listed, naming, found)
    else:
        raise RequestInvalid(
            f"{path}: neither a bundle, nor an OCI layout, an archive of docker save, or the "
            "storage of a registry"
        )
    if not found.contents.blobs:
        raise RequestInvalid("\n".join([f"{path}: holds no image to import", *found.notes]))
    return found


def _read_layout(tree: Tree, index: bytes, naming: Naming, found: FoundImages) -> None:
    """Read an ``index.json`` (image-spec ``image-layout.md``)."""
    entries = as_list(read_large_object(index).get("manifests"))
    for entry in entries:
        descriptor = manifests.read_descriptor(entry)
        if descriptor is None:
            found.notes.append("an entry of index.json has no descriptor")
            continue
        named = named_image(entry)
        if named is not None and named.tag is not None:
            image, descriptor = (named.target, named.tag), named.descriptor
        else:
            name = _entry_name(entry, naming, is_only=len(entries) == 1)
            if name is None:
                found.notes.append(
                    f"{descriptor.digest}: index.json gives it no full name; add --name IMAGE"
                )
                continue
            image = _parsed_name(name, naming)
        record = TagRecord(descriptor, found.contents.created_at)
        _add_image(_Blobs(tree, blob_name), image, record, found)


def _entry_name(entry: object, naming: Naming, *, is_only: bool) -> str | None:
    """Return the name of an image in a layout; one that is only a tag needs a repository."""
    known = annotations(entry)
    full = known.get(_CONTAINERD_NAME)
    if isinstance(full, str) and full:
        return full
    short = known.get(NAME)
    if naming.image is not None and is_only:
        has_tag = ":" in naming.image.rpartition("/")[2]
        return naming.image if has_tag or not short else f"{naming.image}:{short}"
    return short if isinstance(short, str) and "/" in short and ":" in short else None


def _read_docker_archive(tree: Tree, listed: bytes, naming: Naming, found: FoundImages) -> None:
    """Read a ``manifest.json`` of docker save."""
    try:
        entries = json.loads(listed)
    except (ValueError, RecursionError):
        raise RequestInvalid("manifest.json: not JSON") from None
    for entry in as_list(entries):
        if not isinstance(entry, dict):
            continue
        names = [str(name) for name in as_list(entry.get("RepoTags"))]
        if naming.image is not None and len(as_list(entries)) == 1:
            names = [naming.image]
        if not names:
            found.notes.append(f"{entry.get('Config')}: has no name; add --name IMAGE")
            continue
        manifest = _made_manifest(tree, entry, found)
        for name in names:
            target, tag = _parsed_name(name, naming)
            _link(found, target, [*manifest[1]])
            record = TagRecord(manifest[0], found.contents.created_at)
            found.contents.tags.append(BundledTag(target, tag, record))


def _made_manifest(
    tree: Tree, entry: dict[str, object], found: FoundImages
) -> tuple[Descriptor, list[Digest]]:
    """Add an image of docker save; return the descriptor of its new manifest, and its content."""
    parts: list[dict[str, object]] = []
    digests: list[Digest] = []
    names = [str(entry.get("Config")), *(str(one) for one in as_list(entry.get("Layers")))]
    for name, kind in zip(names, [_CONFIG] + [_LAYER] * (len(names) - 1), strict=True):
        digest, size = _hashed(tree, name)
        found.places[digest] = name
        found.contents.blobs.setdefault(digest, BundledBlob(digest, size, None, is_public=False))
        parts.append({"mediaType": kind, "size": size, "digest": digest})
        digests.append(digest)
    document = {
        "schemaVersion": 2,
        "mediaType": DOCKER_MANIFEST,
        "config": parts[0],
        "layers": parts[1:],
    }
    body = json.dumps(document).encode()
    made = Descriptor(DOCKER_MANIFEST, sha256(body), len(body))
    found.places[made.digest] = body
    found.contents.blobs[made.digest] = BundledBlob(
        made.digest, made.size, made.media_type, is_public=False
    )
    return made, [made.digest, *digests]


def _hashed(tree: Tree, name: str) -> tuple[Digest, int]:
    file = tree.open(name)
    if file is None:
        raise RequestInvalid(f"{name}: named in manifest.json and missing in the archive")
    try:
        hasher = hashlib.sha256()
        for start in range(0, file.size, STEP):
            hasher.update(file.read(start, start + STEP))
        return Digest(f"sha256:{hasher.hexdigest()}"), file.size
    finally:
        file.close()


def _registry_root(tree: Tree) -> str | None:
    """Return the root of a registry's storage, None if it is not one."""
    for root in (_REGISTRY, "registry/v2", "v2", "."):
        if tree.is_folder(_inside(root, "repositories")) and tree.is_folder(_inside(root, "blobs")):
            return root
    return None


def _read_registry(tree: DirectoryTree, root: str, naming: Naming, found: FoundImages) -> None:
    """Read the storage directory of Distribution, versions 2 and 3.

    https://distribution.github.io/distribution/ (``registry/storage/paths.go``)
    """

    def place(digest: Digest) -> str:
        algorithm, _, encoded = digest.partition(":")
        return _inside(root, f"blobs/{algorithm}/{encoded[:2]}/{encoded}/data")

    blobs = _Blobs(tree, place)
    for repository, folder in _repositories(tree, _inside(root, "repositories")):
        try:
            target = naming.target(repository)
        except RegistryError as error:
            found.notes.append(f"{repository}: {error.message}")
            continue
        tags = f"{folder}/_manifests/tags"
        for name in tree.names(tags):
            _read_registry_tag(tree, f"{tags}/{name}", (target, name), blobs, found)
        for revision in tree.names(f"{folder}/_manifests/revisions/sha256"):
            digest = Digest(f"sha256:{revision}")
            if _HEX.fullmatch(revision) and digest not in found.contents.blobs:
                body = read_file(tree, place(digest), manifests.MAX_SIZE)
                if body is not None:
                    descriptor = _described(digest, body)
                    _add_tree(blobs, target, descriptor, found)


def _read_registry_tag(
    tree: DirectoryTree,
    folder: str,
    name: tuple[Target, str],
    blobs: "_Blobs",
    found: FoundImages,
) -> None:
    link = f"{folder}/current/link"
    text = read_file(tree, link, 1024)
    try:
        digest, tag = parse_digest((text or b"").decode().strip()), parse_tag(name[1])
    except (RegistryError, UnicodeDecodeError):
        found.notes.append(f"{name[0]}:{name[1]}: its link is damaged")
        return
    body = read_file(tree, blobs.place(digest), manifests.MAX_SIZE)
    if body is None:
        found.notes.append(f"{name[0]}:{tag}: its manifest {digest} is gone")
        return
    record = TagRecord(_described(digest, body), tree.modified_at(link))
    _add_image(blobs, (name[0], tag), record, found)


def _repositories(tree: DirectoryTree, folder: str, below: str = "") -> Iterator[tuple[str, str]]:
    """Yield name and folder of every repository; names have any number of components."""
    for name in tree.names(folder):
        path = f"{folder}/{name}"
        if name.startswith("_") or not tree.is_folder(path):
            continue
        repository = f"{below}/{name}" if below else name
        if tree.is_folder(f"{path}/_manifests"):
            yield repository, path
        yield from _repositories(tree, path, repository)


@dataclass(frozen=True, slots=True)
class _Blobs:
    """The blobs of a tree; ``place`` returns the name of the file of one."""

    tree: Tree
    place: Callable[[Digest], str]


def _add_image(
    blobs: _Blobs, image: tuple[Target, Tag], record: TagRecord, found: FoundImages
) -> None:
    target, tag = image
    digest, at = record.descriptor.digest, record.checked_at
    if not _add_tree(blobs, target, record.descriptor, found):
        found.notes.append(f"{target}:{tag}: {digest} is missing or damaged")
        return
    history = (TagHistoryEntry(digest, at, at),)
    found.contents.tags.append(BundledTag(target, tag, record, history))


def _add_tree(blobs: _Blobs, target: Target, root: Descriptor, found: FoundImages) -> bool:
    """Add a manifest and the content in it that exists; return True if the manifest exists.

    Registries in proxy mode and layouts of one platform have indexes without some of their images.
    """
    todo = [(root, 0)]
    linked: dict[Digest, None] = {}
    while todo:
        descriptor, depth = todo.pop()
        if descriptor.digest in linked or depth > MAX_DEPTH:
            continue
        body = read_file(blobs.tree, blobs.place(descriptor.digest), manifests.MAX_SIZE)
        content = None if body is None else _content(body)
        if body is None or content is None or sha256(body) != descriptor.digest:
            continue
        media_type = content.own_type or descriptor.media_type or content.implied_type
        _add_blob(blobs, descriptor.digest, len(body), media_type, found)
        linked[descriptor.digest] = None
        children = content.children
        for child in () if children is None else children.blobs:
            file = blobs.tree.open(blobs.place(child.digest))
            if file is None:
                continue
            _add_blob(blobs, child.digest, file.size, None, found)
            file.close()
            linked[child.digest] = None
        if children is not None:
            todo += [
                (Descriptor("", one.digest, one.size), depth + 1) for one in children.manifests
            ]
    _link(found, target, [*linked])
    return root.digest in linked


def _add_blob(
    blobs: _Blobs, digest: Digest, size: int, media_type: str | None, found: FoundImages
) -> None:
    found.places[digest] = blobs.place(digest)
    known = found.contents.blobs.get(digest)
    if known is None or known.media_type is None:
        found.contents.blobs[digest] = BundledBlob(digest, size, media_type, is_public=False)


def _link(found: FoundImages, target: Target, digests: list[Digest]) -> None:
    known = found.contents.links.get(target, [])
    found.contents.links[target] = [*dict.fromkeys((*known, *digests))]


def _content(body: bytes) -> ManifestContent | None:
    content = manifests.read(body)
    return content if content.is_manifest else None


def _described(digest: Digest, body: bytes) -> Descriptor:
    content = manifests.read(body)
    return Descriptor(content.own_type or content.implied_type, digest, len(body))


def _parsed_name(name: str, naming: Naming) -> tuple[Target, Tag]:
    """Return repository and tag of a name. Raises ``RequestInvalid``."""
    path, _, last = name.rpartition("/")
    last, colon, tag = last.partition(":")
    try:
        return naming.target(f"{path}/{last}" if path else last), parse_tag(
            tag if colon else "latest"
        )
    except RegistryError as error:
        raise RequestInvalid(f"{name!r}: {error.message}") from None


def _inside(root: str, name: str) -> str:
    return name if root == "." else f"{root}/{name}"
