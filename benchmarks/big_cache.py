"""Makes a cache of many small blobs, as a proxy that has run for long would have left it.

`python -m benchmarks.big_cache DIRECTORY BLOBS`. Every tenth blob is a manifest with a tag; it
lists nine blobs of its own and one that it shares with nine other images. Manifests are true; of
other blobs the bytes are not those of their name, but a hole of the right size: nothing hashes
what is held when it is served. Rows are written by the proxy's own tables.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from hashlib import sha256
from itertools import islice
from multiprocessing import Process
from pathlib import Path
from random import Random
from typing import Any

from proxy.core.names import Digest, Repo, Target
from proxy.core.records import BlobRecord, Child
from proxy.index.table import Table
from proxy.index.tables import Held, Tables
from proxy.storage.directory import Directory

SIZE = 4096
"""Bytes of every blob, a block."""

_OWN = 9
_SHARING = 10
_TAGS = 100
"""Tags of a repository."""

_LIFE = 90 * 86400
_BATCH = 50_000
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_VERSION = 3


def repository(image: int) -> str:
    """Return the repository of an image, as clients name it."""
    return f"scale/r{image // _TAGS:05d}"


def tag(image: int) -> str:
    """Return the tag of an image."""
    return f"v{image % _TAGS}"


def own(image: int) -> list[str]:
    """Return the digests of the blobs that an image brings: its config, then its layers."""
    return [_blob(image * _OWN + number) for number in range(_OWN)]


def manifest(image: int) -> bytes:
    """Return an image's manifest."""
    config, *layers = own(image)
    layers.append(_blob((image - image % _SHARING) * _OWN + 1) if image % _SHARING else layers[0])
    document = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "digest": config, "size": SIZE},
        "layers": [{"mediaType": _LAYER, "digest": each, "size": SIZE} for each in layers],
    }
    return json.dumps(document).encode()


def digest_of(body: bytes) -> str:
    """Return the digest of some bytes."""
    return f"sha256:{sha256(body).hexdigest()}"


def make(directory: Path, blobs: int) -> float:
    """Make the cache, unless it is there; return how many seconds that took."""
    done = directory / "made.json"
    if done.exists() and json.loads(done.read_text()) == [_VERSION, blobs]:
        return 0.0
    started = time.monotonic()
    shutil.rmtree(directory, ignore_errors=True)
    store = Directory(directory)
    parts: list[Callable[[Path, int], None]] = [_files, _blob_rows, _other_rows]
    processes = [Process(target=part, args=(directory, blobs // 10)) for part in parts]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0, "making the cache failed"
    store.close()
    done.write_text(json.dumps([_VERSION, blobs]))
    return time.monotonic() - started


def copy(directory: Path, to: Path) -> None:
    """Make a cache of its own out of another: blobs are linked, nothing ever writes into them."""
    to.mkdir(mode=0o700)
    for name in ("blobs", "index", "oci-layout", "index.json", "millpond.json"):
        link = os.link if name == "blobs" else shutil.copy2
        if (directory / name).is_dir():
            shutil.copytree(directory / name, to / name, copy_function=link)
        else:
            shutil.copy2(directory / name, to / name)


def _blob(number: int) -> str:
    return digest_of(b"%d" % number)


def _files(directory: Path, images: int) -> None:
    folder = os.open(directory / "blobs" / "sha256", os.O_RDONLY)
    flags = os.O_CREAT | os.O_WRONLY
    for image in range(images):
        for digest in own(image):
            file = os.open(digest[7:], flags, 0o600, dir_fd=folder)
            os.ftruncate(file, SIZE)
            os.close(file)
        body = manifest(image)
        file = os.open(digest_of(body)[7:], flags, 0o600, dir_fd=folder)
        os.write(file, body)
        os.close(file)
    os.close(folder)


def _blob_rows(directory: Path, images: int) -> None:
    tables = Tables(directory / "index")
    for rows in _batches(_held(images)):
        tables.set_blobs(rows)
    tables.close()


def _held(images: int) -> Iterator[Held]:
    now, random = time.time(), Random(1)
    for image in range(images):
        used_at = now - random.random() * _LIFE
        for digest in own(image):
            yield Held(BlobRecord(Digest(digest), SIZE, None, used_at + 1e-6), ())
        body = manifest(image)
        document = json.loads(body)
        listed = [document["config"], *document["layers"]]
        children = tuple(Child(Digest(each["digest"]), SIZE) for each in listed)
        record = BlobRecord(Digest(digest_of(body)), len(body), _MANIFEST, used_at)
        yield Held(record, children)


def _other_rows(directory: Path, images: int) -> None:
    tables = Tables(directory / "index")
    for linked in _batches(_links(images)):
        tables.set_holders(dict(linked))
    tables.close()
    tags = Table(directory / "index" / "tags")
    for rows in _batches(_tags(images)):
        tags.set(rows)
    tags.close()


def _links(images: int) -> Iterator[tuple[Digest, list[Target]]]:
    for image in range(images):
        targets = [_target(image)]  # those that share a blob are of one repository
        for digest in (*own(image), digest_of(manifest(image))):
            yield Digest(digest), targets


def _tags(images: int) -> Iterator[tuple[object, object]]:
    now = time.time()
    for image in range(images):
        body = manifest(image)
        digest = digest_of(body)
        row = [[_MANIFEST, digest, len(body), now], [[digest, now - _LIFE, now]]]
        yield [*_target(image), tag(image)], row


def _target(image: int) -> Target:
    return Target("docker.io", Repo(repository(image)))


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


if __name__ == "__main__":
    seconds = make(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(f"{sys.argv[2]} blobs in {seconds:.1f} s\n")
