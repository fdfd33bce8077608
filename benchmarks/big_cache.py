"""Makes a cache of many small blobs, as a proxy that has run for long would have left it.

`python -m benchmarks.big_cache DIRECTORY BLOBS`. Every tenth blob is a manifest with a tag; it
lists nine blobs of its own and one that it shares with nine other images. Manifests are true; of
other blobs the bytes are not those of their name, but a hole of the right size: nothing hashes
what is held when it is served. Rows are written by the proxy's own SQL, without its RAM.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import sha256
from itertools import islice
from multiprocessing import Process
from pathlib import Path
from random import Random
from sqlite3 import Connection
from typing import Any

from proxy.core.names import Digest, Repo, Tag, Target
from proxy.core.records import BlobRecord, Child, Descriptor, TagRecord
from proxy.index import blob_rows, name_rows
from proxy.index.database import Database
from proxy.storage.directory import Directory

SIZE = 4096
"""Bytes of every blob, a block."""

_OWN = 9
_SHARING = 10
_TAGS = 100
"""Tags of a repository."""

_LIFE = 90 * 86400
_BATCH = 5000
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_CONFIG = "application/vnd.oci.image.config.v1+json"
_LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
_VERSION = 4


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
    parts: list[Callable[[Path, int], None]] = [_files, _rows]
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


def _rows(directory: Path, images: int) -> None:
    database = Database(directory / "index")
    database.open()
    random, now = Random(1), time.time()
    for batch in _batches(range(images)):
        times = [now - random.random() * _LIFE for _ in batch]
        database.transact([partial(_write, batch, times, now)])
    database.transact([lambda db: name_rows.set_note(db, "reconciled", value=True)])
    database.close()


def _write(images: list[int], times: list[float], now: float, db: Connection) -> None:
    for image, used_at in zip(images, times, strict=True):
        target, body = _target(image), manifest(image)
        document = json.loads(body)
        listed = [document["config"], *document["layers"]]
        children = tuple(Child(Digest(each["digest"]), SIZE) for each in listed)
        record = BlobRecord(Digest(digest_of(body)), len(body), _MANIFEST, used_at)
        digests = [Digest(digest) for digest in own(image)]
        for digest in digests:
            blob_rows.put(db, BlobRecord(digest, SIZE, None, used_at + 1e-6), ())
        blob_rows.put(db, record, children)
        name_rows.link(db, target, [*digests, record.digest], now)
        found = TagRecord(Descriptor(_MANIFEST, record.digest, len(body)), now)
        name_rows.set_tag(db, target, Tag(tag(image)), found)


def _target(image: int) -> Target:
    return Target("docker.io", Repo(repository(image)))


def _batches(rows: Iterable[Any]) -> Iterator[list[Any]]:
    iterator = iter(rows)
    while batch := list(islice(iterator, _BATCH)):
        yield batch


if __name__ == "__main__":
    seconds = make(Path(sys.argv[1]), int(sys.argv[2]))
    sys.stdout.write(f"{sys.argv[2]} blobs in {seconds:.1f} s\n")
