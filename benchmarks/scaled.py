"""Measures one Millpond on a cache of many blobs: start, memory, hits, lists, eviction."""

import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from shutil import rmtree
from typing import Any

from benchmarks import big_cache, wrk
from benchmarks.ours import Watched
from benchmarks.processes import cpu_seconds
from benchmarks.pull import Connection
from benchmarks.upstream import ACCEPT
from benchmarks.wrk import Shot
from tests.parts.process import NOWHERE, listens, wait_until, workdir

EVICTED = 10_000
"""Blobs that one eviction takes, or half of what there is."""

_EVERY = 0.005
_HOT = 100  # as many as the smallest cache has
_SECONDS = 3.0
_QUIET = 0.1  # seconds of CPU in a second
_WITHIN = 600.0
_SETTINGS = {
    "storage": {"max_size": "100GiB", "min_free": 0},
    "freshness": {"tag_ttl": "forever"},
    "memory": {"largest_blob": 1},  # what goes into RAM is hashed, and must be true
}

Numbers = dict[str, float]


class Asking:
    """A client that asks for the same all the time; `worst` is its longest wait, in seconds."""

    def __init__(self, url: str, path: str) -> None:
        self._url = url
        self._path = path
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._ask)
        self.worst = 0.0

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _ask(self) -> None:
        with Connection(self._url) as connection:
            while not self._done.wait(_EVERY):
                started = time.perf_counter()
                connection.get(self._path, **ACCEPT)
                self.worst = max(self.worst, time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Paths:
    """What is asked for: images in a random order, each once, or a few again and again."""

    images: int

    def image(self, number: int) -> str:
        """Return the path of an image by its tag."""
        return f"/v2/{big_cache.repository(number)}/manifests/{big_cache.tag(number)}"

    def blob(self, number: int) -> str:
        """Return the path of one blob of an image."""
        digest = big_cache.own(number)[number % 9]
        return f"/v2/{big_cache.repository(number)}/blobs/{digest}"

    def chosen(self, *, is_hot: bool) -> list[int]:
        """Return images in a random order: all of them, or the few that are hot."""
        numbers = list(range(self.images))
        Random(2).shuffle(numbers)
        return numbers[:_HOT] if is_hot else numbers


class Large(Watched):
    """Millpond on a copy of a large cache; its event loop is sampled."""

    def __init__(self, root: Path, blobs: int) -> None:
        super().__init__(root, NOWHERE, _SETTINGS, _EVERY)
        self.paths = Paths(blobs // 10)
        self._root = root
        self._blobs = blobs
        self._agreements = 0

    def _is_ready(self) -> bool:
        return listens(self.port)

    def first_answers(self) -> Numbers:
        """Start; return after how many seconds a tag, and a blob, were answered."""
        started = time.monotonic()
        self._daemon.start(lambda: True)
        found = {}
        last = self.paths.images - 1
        for name, path in (
            ("first_tag", self.paths.image(last)),
            ("first_blob", self.paths.blob(last)),
        ):
            while name not in found:
                try:
                    with Connection(self.url) as connection:
                        connection.get(path, **ACCEPT)
                        found[name] = time.monotonic() - started
                except ConnectionError:
                    assert self._daemon.is_alive(), self.log()
                    time.sleep(_EVERY)
        return found

    def agree(self, since: float) -> Numbers:
        """Wait until index and disk agree and the layout's names are written; tell when."""
        written = self.storage / "index.json"
        self._agreements += 1
        with Asking(self.url, self.paths.image(0)) as asking:
            wait_until(self._agrees, "agreement of index and disk", _WITHIN)
            agreed = time.monotonic()
            before = time.time() - (agreed - since)
            wait_until(lambda: written.stat().st_mtime > before, "index.json", _WITHIN)
        end = time.monotonic()
        return {
            "agreed": agreed - since,
            "named": end - since,
            "start_wait_ms": asking.worst * 1e3,
            "start_stall_ms": self.stall(since, end) * 1e3,
        }

    def rest(self, since: float) -> Numbers:
        """Wait until nothing runs in the background any more; tell when."""
        used = cpu_seconds(self.pid)

        def is_quiet() -> bool:
            nonlocal used
            time.sleep(1)
            before, used = used, cpu_seconds(self.pid)
            return used - before < _QUIET

        wait_until(is_quiet, "quiet", _WITHIN)
        return {"quiet": time.monotonic() - since}

    def end(self) -> None:
        """Kill it if it still runs: a measurement has failed."""
        if self._daemon.is_alive():
            self.kill()

    def _agrees(self) -> bool:
        return self.log().count('"reconciled"') == self._agreements

    def stall(self, since: float, until: float) -> float:
        """Return how late the loop has been at most, in seconds."""
        time.sleep(3 * _EVERY)
        return max((sample.late for sample in self.samples(since, until)), default=0.0)

    def memory(self) -> Numbers:
        """Return resident memory in MB: now, and its peak."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in lines if " kB" in line}
        return {"rss_mb": kilobytes["VmRSS"] / 1e3, "peak_mb": kilobytes["VmHWM"] / 1e3}

    def hits(self, name: str, path: Callable[[int], str], *, is_hot: bool) -> Numbers:
        """Return the CPU time of a hit, in microseconds."""
        listed = self._root / "paths"
        listed.write_text("\n".join(map(path, self.paths.chosen(is_hot=is_hot))))
        script = self._root / "paths.lua"
        script.write_text(_WALK.format(file=listed))
        if is_hot:
            wrk.fire(Shot(self.url, ACCEPT, 8, 1, script))
        before = cpu_seconds(self.pid)
        load = wrk.fire(Shot(self.url, ACCEPT, 8, _SECONDS, script))
        used = cpu_seconds(self.pid) - before
        return {f"{name}_us": used / load.requests * 1e6, f"{name}_p99_ms": load.p99_ms}

    def list_images(self) -> Numbers:
        """Return how many seconds a list of all images takes, and what others wait meanwhile."""
        return self._disturbed("ls", lambda: self._operate("GET", "/-/images"), self._count)

    def evict(self) -> Numbers:
        """Return how many seconds an eviction takes, and what others wait meanwhile."""
        many = min(EVICTED, self._blobs // 2)
        path = f"/-/evict?bytes={many * big_cache.SIZE}"

        def check(body: bytes) -> None:
            assert json.loads(body)["blobs"] >= many, body

        return self._disturbed("evict", lambda: self._operate("POST", path), check)

    def _count(self, body: bytes) -> None:
        assert body.count(b"\n") == self.paths.images, body[-200:]

    def _disturbed(
        self, name: str, work: Callable[[], bytes], check: Callable[[bytes], None]
    ) -> Numbers:
        warmest = self.paths.image(self.paths.chosen(is_hot=True)[0])
        with Asking(self.url, warmest) as asking:
            since = time.monotonic()
            body = work()
            until = time.monotonic()
        check(body)
        return {
            f"{name}_s": until - since,
            f"{name}_wait_ms": asking.worst * 1e3,
            f"{name}_stall_ms": self.stall(since, until) * 1e3,
        }

    def _operate(self, method: str, path: str) -> bytes:
        """Ask on the admin socket; return the body as it came, chunks joined."""
        with socket.socket(socket.AF_UNIX) as asked:
            asked.settimeout(_WITHIN)
            asked.connect(str(self.storage / "admin.sock"))
            request = f"{method} {path} HTTP/1.0\r\nHost: admin\r\n\r\n"
            asked.sendall(request.encode())
            with asked.makefile("rb") as answer:
                head, _, body = answer.read().partition(b"\r\n\r\n")
        assert b" 200 " in head.splitlines()[0], head
        return body


_WALK = """
local paths, at = {{}}, 0
for line in io.lines("{file}") do paths[#paths + 1] = line end
request = function()
  at = at % #paths + 1
  return wrk.format(nil, paths[at])
end
"""


@contextmanager
def large(directory: Path, blobs: int) -> Iterator[Large]:
    """Give a proxy, not started, on a copy of the cache that lies in a directory."""
    beside = directory.resolve().parent / "copy"  # on the same disk, so that blobs can be linked
    with workdir("scale") as root:
        rmtree(beside, ignore_errors=True)
        beside.mkdir(mode=0o700)
        (root / "storage").symlink_to(beside / "storage")
        big_cache.copy(directory, beside / "storage")
        server = Large(root, blobs)
        try:
            yield server
        finally:
            server.end()
            rmtree(beside)


def measure(directory: Path, blobs: int, say: Callable[[str], None]) -> Mapping[str, Any]:
    """Return all numbers for a cache of so many blobs; made in `directory` unless it is there."""
    seconds = big_cache.make(directory, blobs)
    say(f"{blobs} blobs made in {seconds:.0f} s")
    with large(directory, blobs) as server:
        for start in ("", "again_"):  # the second finds the layout's names written
            since = time.monotonic()
            found: Numbers = {}
            found |= server.first_answers()
            found |= server.agree(since)
            found |= server.memory()
            found |= server.rest(since)
            if start == "":
                server.stop(60)
                first = {f"new_{name}": value for name, value in found.items()}
        for is_hot in (True, False):
            kind = "hot" if is_hot else "any"
            found |= server.hits(f"tag_{kind}", server.paths.image, is_hot=is_hot)
            found |= server.hits(f"blob_{kind}", server.paths.blob, is_hot=is_hot)
        found |= server.list_images()
        found |= server.evict()
        found |= {f"end_{name}": value for name, value in server.memory().items()}
        server.stop(60)
    return found | first


if __name__ == "__main__":
    count = int(sys.argv[1])
    for key, value in measure(Path(f"build/scale/{count}"), count, print).items():
        print(f"{key:24} {value:12.3f}", flush=True)
