"""Does memory grow with streams, and with clients that read slowly?"""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from statistics import median

from benchmarks import ours
from benchmarks.bench import Bench
from benchmarks.ours import Ours
from benchmarks.processes import rss_bytes
from benchmarks.pull import Connection, pull
from benchmarks.rows import Row, at_most
from benchmarks.upstream import BIG

_STREAMS = 64
_BLOBS = 4
_SLOW_PIECE = 64 * 1024
_SLOW_PAUSE = 0.05
_ROUNDS = 2


def run(bench: Bench) -> list[Row]:
    """Return by how many MB the resident memory grew, warm and cold, at its highest."""
    blobs = [bench.content.blob(BIG, number) for number in range(_BLOBS)]
    paths = [bench.content.path(blob) for blob in blobs]
    small = bench.content.path(bench.content.blob(100_000))

    def growth(*, is_warm: bool) -> float:
        with ours.millpond(bench.url) as server:
            for path in [small, *(paths if is_warm else [])]:
                pull(server.url, path)
            return _growth(server, paths) / 1e6

    turns = {"warm": lambda: growth(is_warm=True), "cold": lambda: growth(is_warm=False)}
    results = bench.interleaved(turns, _ROUNDS)
    work = "more memory with 64 streams of 300 MB, 32 of them slow"
    unit, target = "MB", at_most(64)
    return [
        Row(f"memory_{kind}", f"{work}, {kind}", unit, measured, target=target)
        for kind, measured in results.items()
    ]


def _growth(server: Ours, paths: list[str]) -> float:
    """Return the highest RSS above that before, until the last fast stream has ended."""
    before = median(rss_bytes(server.pid) for _ in range(5))
    done = threading.Event()
    with ThreadPoolExecutor(_STREAMS) as clients:
        for number in range(_STREAMS // 2):
            clients.submit(_read_slowly, server.url, paths[number % len(paths)], done)
        fast = [
            clients.submit(pull, server.url, paths[number % len(paths)])
            for number in range(_STREAMS // 2)
        ]
        highest = before
        try:
            while not all(one.done() for one in fast):
                highest = max(highest, rss_bytes(server.pid))
                time.sleep(0.05)
        finally:
            done.set()
        assert all(one.result().size == BIG for one in fast)
    return highest - before


def _read_slowly(url: str, path: str, done: threading.Event) -> None:
    with Connection(url, receive_buffer=_SLOW_PIECE) as connection:
        connection.ask(path)
        while not done.wait(_SLOW_PAUSE):
            connection.piece(_SLOW_PIECE)
