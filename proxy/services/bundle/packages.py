"""Opens packages for import: a bundle, or images that another tool has written.

A package has contents, and the file of each blob. Packages are not trusted: a signature
authenticates the contents file, its digests authenticate every other file, and the cache hashes
everything again.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from proxy.core.errors import RequestInvalid
from proxy.core.names import Digest
from proxy.services.bundle import contents as bundle
from proxy.services.bundle import foreign, signatures
from proxy.services.bundle.contents import NAME, SIGNATURE, BundledBlob, Contents
from proxy.services.bundle.layout import blob_name
from proxy.services.bundle.signatures import MAX_SIGNATURE, TrustedKey
from proxy.services.bundle.trees import TarTree, Tree, TreeFile, open_tree, read_file

STEP: Final = 1024 * 1024
_MAX_SHOWN: Final = 20


@dataclass(frozen=True, slots=True)
class Package:
    """A package to import. ``places`` has the file of each blob, or its bytes.

    ``signer`` is the key that signed it, None without a signature. Close it when done.
    """

    tree: Tree
    contents: Contents
    places: Mapping[Digest, str | bytes]
    kind: str
    signer: TrustedKey | None = None
    notes: tuple[str, ...] = ()

    def open(self, blob: BundledBlob) -> TreeFile:
        """Return the file of a blob. Raises ``RequestInvalid`` if it has another size."""
        place = self.places[blob.digest]
        file = foreign.Bytes(place) if isinstance(place, bytes) else self.tree.open(place)
        if file is None:
            raise RequestInvalid(f"{blob.digest}: missing in the bundle")
        if file.size != blob.size:
            file.close()
            raise RequestInvalid(f"{blob.digest}: {file.size} instead of {blob.size} bytes")
        return file

    def verify(self) -> Iterator[int]:
        """Hash every blob, and yield the bytes as they are read. Blocks.

        Raises ``RequestInvalid`` that names a wrong blob, ``OSError``.
        """
        for blob in self.contents.included:
            hasher = hashlib.new(blob.digest.partition(":")[0])
            file = self.open(blob)
            try:
                for start in range(0, blob.size, STEP):
                    data = file.read(start, start + STEP)
                    hasher.update(data)
                    yield len(data)
            finally:
                file.close()
            if hasher.hexdigest() != blob.digest.partition(":")[2]:
                raise RequestInvalid(f"{blob.digest}: other bytes in the bundle")


def open_package(
    path: Path, trusted: Iterable[TrustedKey] | None, naming: foreign.Naming
) -> Package:
    """Return the package at a path. ``trusted`` None: signatures are not required.

    Blocks. Raises ``ConfigError`` if it cannot be read, ``RequestInvalid`` if it is not a package,
    is damaged, or is not signed by a trusted key.
    """
    tree = open_tree(path)
    try:
        text = read_file(tree, NAME, bundle.MAX_BYTES)
        if text is None:
            return _foreign(tree, path, trusted, naming)
        signer = None if trusted is None else _signer(tree, text, trusted)
        contents = bundle.parse(text)
        _check_files(tree, contents)
        places = {blob.digest: blob_name(blob.digest) for blob in contents.included}
        return Package(tree, contents, places, "bundle", signer)
    except BaseException:
        tree.close()
        raise


def _foreign(
    tree: Tree, path: Path, trusted: Iterable[TrustedKey] | None, naming: foreign.Naming
) -> Package:
    found = foreign.read(tree, path, naming)
    if trusted is not None:
        raise RequestInvalid(
            f"{path}: {found.kind}, which has no signature; to import it anyway, add --insecure"
        )
    return Package(tree, found.contents, found.places, found.kind, None, tuple(found.notes))


def _signer(tree: Tree, text: bytes, trusted: Iterable[TrustedKey]) -> TrustedKey:
    """Return the trusted key that signed the contents file. Raises ``RequestInvalid``."""
    keys = [*trusted]
    if not keys:
        raise RequestInvalid(
            "no key is trusted; name one under bundles.trusted_keys or with --trust FILE, or "
            "import without a proof of origin with --insecure"
        )
    signature = read_file(tree, SIGNATURE, MAX_SIGNATURE)
    if signature is None:
        raise RequestInvalid("the bundle is not signed; to import it anyway, add --insecure")
    return signatures.verify(text, signature.decode(errors="replace"), keys)


def _check_files(tree: Tree, contents: Contents) -> None:
    """Raise ``RequestInvalid`` unless the bundle has its files, no others, and in their order."""
    expected = [NAME, *contents.files]
    expected += [blob_name(blob.digest) for blob in contents.included]
    if isinstance(tree, TarTree):
        found = [name for name in tree.files if name != SIGNATURE]
    else:
        found = [name for name in _walk(tree, "") if name != SIGNATURE]
    if missing := sorted(set(expected) - set(found)):
        shown = "\n".join(missing[:_MAX_SHOWN])
        raise RequestInvalid(f"{len(missing):,} files are missing in the bundle:\n{shown}")
    if others := sorted(set(found) - set(expected)):
        raise RequestInvalid(f"the bundle has a file that its contents do not name: {others[0]}")
    if isinstance(tree, TarTree) and found != expected:
        raise RequestInvalid("the files of the bundle are in another order than they were written")
    for name, digest in contents.files.items():
        body = read_file(tree, name, bundle.MAX_BYTES) or b""
        if hashlib.sha256(body).hexdigest() != digest.partition(":")[2]:
            raise RequestInvalid(f"{name}: not what the contents file says")


def _walk(tree: Tree, folder: str) -> Iterator[str]:
    """Yield the names of all files in a directory."""
    for name in tree.names(folder):
        path = f"{folder}/{name}" if folder else name
        below = [*_walk(tree, path)] if tree.is_folder(path) else [path]
        yield from below
