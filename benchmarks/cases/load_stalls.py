"""Does a stream from a cold disk delay other clients?"""

import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from benchmarks import ours, wrk
from benchmarks.bench import Bench, warm
from benchmarks.ours import Watched
from benchmarks.pull import pull
from benchmarks.rows import Row, at_most
from benchmarks.upstream import ACCEPT, BIG
from benchmarks.wrk import Shot

_STREAMS = 4
_SECONDS = 5
_MANIFEST_CLIENTS = 8
_ROUNDS = 3
_LAYER = 64_000


def run(bench: Bench) -> list[Row]:
    """Return the p99 of how late the loop is, and of a manifest, in milliseconds."""
    blobs = [bench.content.blob(BIG, number) for number in range(_STREAMS)]
    image = bench.content.image(_LAYER)
    manifest = f"/v2/{image.repository}/manifests/{image.digest}"
    with ours.watched(bench.url) as server:
        for blob in blobs:
            warm(server, bench.content.path(blob), BIG)
        pull(server.url, manifest)
        streams = {bench.content.path(blob): server.blob_file(blob.digest) for blob in blobs}
        turns = {"cold": lambda: _turn(server, streams, manifest)}
        measured = bench.interleaved(turns, _ROUNDS)["cold"]
    stalls, waits, gigabytes = map(list, zip(*measured, strict=True))
    note = f"{min(gigabytes):.1f} GB and more read from the disk in {_SECONDS} s"
    work = "streaming 4 blobs from a cold page cache"
    return [
        Row("stall", f"{work}: loop stall p99", "ms", stalls, target=at_most(20), note=note),
        Row("stall_manifest", f"{work}: manifest p99", "ms", waits, target=at_most(30)),
    ]


def _turn(server: Watched, streams: dict[str, Path], manifest: str) -> tuple[float, float, float]:
    """Return the p99 of loop and manifests in milliseconds, and the GB that were streamed."""
    done = threading.Event()

    def stream(path: str, file: Path) -> int:
        total = 0
        while not done.is_set():
            _forget(file)
            total += pull(server.url, path).size
        return total

    shot = Shot(server.url + manifest, ACCEPT, _MANIFEST_CLIENTS, _SECONDS)
    with ThreadPoolExecutor(_STREAMS) as clients:
        streaming = [clients.submit(stream, *each) for each in streams.items()]
        start = time.monotonic()
        try:
            load = wrk.fire(shot)
        finally:
            end = time.monotonic()
            done.set()
        total = sum(one.result() for one in streaming)
    late = sorted(sample.late for sample in server.samples(start, end))
    return late[int(len(late) * 0.99)] * 1e3, load.p99_ms, total / 1e9


def _forget(file: Path) -> None:
    """Have the kernel drop the file's pages (they are clean: it was synced when stored)."""
    descriptor = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
