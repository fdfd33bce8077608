"""The index alone with many blobs: how long it takes to open, what a question costs, how much RAM.

`python -m benchmarks.index DIRECTORY BLOBS` makes the index in DIRECTORY, unless it is there.
An image has ten blobs: its manifest, its config, seven layers that no other image
has, and one that it shares.
"""

import asyncio
import json
import random
import shutil
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from proxy.core.names import Digest, Repo, Tag, Target
from proxy.index.database import Database
from proxy.index.sqlite import SqliteIndex

MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_OWN: Final = 9
_LIFE: Final = 30 * 86400.0
_QUESTIONS: Final = 5000


def digest(number: int) -> bytes:
    """Return the key of a blob."""
    return sha256(b"%d" % number).digest()


def manifest(image: int) -> bytes:
    """Return the key of an image."""
    return sha256(b"manifest %d" % image).digest()


def named(key: bytes) -> Digest:
    """Return the digest of a key."""
    return Digest(f"sha256:{key.hex()}")


def target(image: int) -> Target:
    """Return the repository of an image."""
    return Target("docker.io", Repo(f"team{image // 1000}/app{image // 10}"))


def make(directory: Path, blobs: int) -> None:
    """Write the rows of an index into its file."""
    database = Database(directory)
    database.open()
    database.close()
    images = range(blobs // 10)
    now = time.time()
    chance = random.Random(1)
    used = [now - chance.random() * _LIFE for _ in images]
    with closing(sqlite3.connect(directory / "index.db", isolation_level=None)) as db:
        db.execute("PRAGMA synchronous = OFF")
        db.execute("BEGIN")
        db.executemany("INSERT INTO blob VALUES (?, ?, ?, ?, ?, 0, ?)", _blobs(images, used))
        db.executemany("INSERT INTO child VALUES (?, ?, ?, ?)", _children(images))
        repos = {target(image): image // 10 + 1 for image in images}
        db.executemany(
            "INSERT INTO repo VALUES (?, ?, ?)", ((id_, *name) for name, id_ in repos.items())
        )
        db.executemany("INSERT INTO link VALUES (?, ?, ?)", _links(images, repos, now))
        tags = (
            (repos[target(image)], f"v{image % 10}", MANIFEST, manifest(image), 1000, now)
            for image in images
        )
        db.executemany("INSERT INTO tag VALUES (?, ?, ?, ?, ?, ?)", tags)
        sightings = (
            (repos[target(image)], f"v{image % 10}", manifest(image), now - _LIFE, now)
            for image in images
        )
        db.executemany("INSERT INTO sighting VALUES (NULL, ?, ?, ?, ?, ?)", sightings)
        db.execute("COMMIT")


def own(image: int) -> list[bytes]:
    """Return the keys of the blobs that an image brings."""
    return [digest(image * _OWN + number) for number in range(_OWN)]


def _blobs(images: range, used: list[float]) -> Iterator[tuple[Any, ...]]:
    for image in images:
        for number, key in enumerate(own(image)):
            yield image * 10 + number + 2, key, 5000, None, used[image] + 1e-6, 0
        yield image * 10 + 1, manifest(image), 1000, MANIFEST, used[image], 10


def _children(images: range) -> Iterator[tuple[Any, ...]]:
    for image in images:
        shared = digest((image - image % 5) * _OWN + 1)
        listed = dict.fromkeys([*own(image), shared])
        for position, key in enumerate(listed):
            yield image * 10 + 1, position, key, 5000


def _links(images: range, repos: dict[Target, int], now: float) -> Iterator[tuple[Any, ...]]:
    for image in images:
        for key in (*own(image), manifest(image)):
            yield key, repos[target(image)], now


async def measure(directory: Path, blobs: int) -> dict[str, object]:
    """Return what was measured, in milliseconds, microseconds and MiB."""
    found: dict[str, object] = {"blobs": blobs, "mib on disk": _mib(directory)}
    found["rss before"] = _rss()
    started = time.perf_counter()
    index = SqliteIndex(directory, clock=time.time, on_error=_trouble)
    async with index:
        await index.tag(target(0), Tag("v0"))
        found["ms to the first answer"] = _since(started)
        found["rss after start"] = _rss()
        assert index.usage().files == blobs
        images = [random.randrange(blobs // 10) for _ in range(_QUESTIONS)]

        async def ask(image: int) -> None:
            record = await index.tag(target(image), Tag(f"v{image % 10}"))
            assert record is not None
            await index.blob(record.descriptor.digest)
            await index.linked(target(image), record.descriptor.digest)

        for name in ("any", "hot"):
            started = time.perf_counter()
            for image in images if name == "any" else [images[0]] * _QUESTIONS:
                await ask(image)
            found[f"us for {name} tag"] = round(_since(started) * 1000 / _QUESTIONS, 1)
        found["ms to search all tags"], found["ms stall in search"] = await _stalled(
            lambda: _search(index)
        )
        found["rss after search"] = _rss()
        found["ms to evict 10000"], found["ms stall in evict"] = await _stalled(
            lambda: _evict(index, 10_000)
        )
        for image in images:
            index.touch(named(manifest(image)))
        found["ms to write 5000 uses"], found["ms stall in uses"] = await _stalled(
            lambda: index.coldest(None, 1)
        )
        found["ms to prune"], found["ms stall in prune"] = await _stalled(
            lambda: index.prune(time.time() - 60)
        )
        found["rss at the end"] = _rss()
    return found


async def _search(index: SqliteIndex) -> None:
    after = None
    while rows := await index.search(after, 500):
        after = rows[-1].target, rows[-1].tag


async def _evict(index: SqliteIndex, count: int) -> None:
    after = None
    while count > 0:
        page = await index.coldest(after, 256)
        await index.drop_blobs([record.digest for _, record in page])
        after, count = page[-1][0], count - len(page)


async def _stalled(work: Callable[[], Awaitable[object]]) -> tuple[float, float]:
    """Return how long work takes, and the longest time in which the loop did nothing else."""
    longest, is_done = 0.0, False

    async def watch() -> None:
        nonlocal longest
        while not is_done:
            before = time.perf_counter()
            await asyncio.sleep(0.001)
            longest = max(longest, time.perf_counter() - before - 0.001)

    watching = asyncio.ensure_future(watch())
    await asyncio.sleep(0.01)
    started = time.perf_counter()
    await work()
    took = _since(started)
    is_done = True
    await watching
    return took, round(longest * 1000, 1)


def _since(started: float) -> float:
    return round((time.perf_counter() - started) * 1000, 1)


def _rss() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * 4096 / 1024**2, 1)


def _mib(directory: Path) -> float:
    return round(sum(path.stat().st_size for path in directory.iterdir()) / 1024**2, 1)


def _trouble() -> None:
    raise AssertionError("the index has trouble")


if __name__ == "__main__":
    place, count = Path(sys.argv[1]), int(sys.argv[2])
    if not (place / "index.db").exists():
        begun = time.monotonic()
        make(place, count)
        sys.stdout.write(f"made in {time.monotonic() - begun:.1f} s\n")
    shutil.rmtree(copy := place.with_name(f"{place.name}.copy"), ignore_errors=True)
    shutil.copytree(place, copy)
    result = asyncio.run(measure(copy, count))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
