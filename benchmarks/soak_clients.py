"""What the clients of the soak do, and how they judge the answers. Every body is compared."""

import hashlib
import random
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from benchmarks.pull import Connection
from benchmarks.upstream import ACCEPT, Content
from tests.parts.images import Descriptor, Image

_BLOBS = 240
_PIECE = 32 * 1024
_MOST_FAULTS = 20


@dataclass(frozen=True, slots=True)
class Shelf:
    """What can be pulled: more than twice what the cache may hold."""

    images: list[Image]
    blobs: list[Descriptor]
    where: Callable[[Descriptor], str]


@dataclass
class Tally:
    """What was done, and what was wrong with it. Shared by all clients."""

    done: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, act: str) -> None:
        """Note that something went well."""
        with self._lock:
            self.done[act] += 1

    def fault(self, sentence: str) -> None:
        """Note that something went wrong."""
        with self._lock:
            self.faults.append(sentence)


def make_shelf(content: Content) -> Shelf:
    """Push the images and blobs; their sizes differ by a factor of 500."""
    sizes = [10_000 * (1 + number % 5) ** 4 for number in range(_BLOBS)]
    blobs = [content.blob(size, number) for number, size in enumerate(sizes)]
    images = [content.image(size, 4) for size in (10_000, 100_000, 1_000_000)]
    return Shelf(images, blobs, content.path)


def client(number: int, url: str, shelf: Shelf, tally: Tally, done: threading.Event) -> None:
    """Do one thing after another until `done`; give up after many faults."""
    dice = random.Random(number)
    acts, weights = zip(*_ACTS.items(), strict=True)
    while not done.is_set() and len(tally.faults) < _MOST_FAULTS:
        act = dice.choices(acts, weights)[0]
        try:
            act(url, shelf, dice)
        except (AssertionError, OSError) as error:
            tally.fault(f"{act.__name__}: {type(error).__name__}: {str(error)[:300]}")
        else:
            tally.count(act.__name__)


def _prove(body: bytes, digest: str) -> None:
    found = f"sha256:{hashlib.sha256(body).hexdigest()}"
    assert found == digest, f"{len(body)} bytes with digest {found}, not {digest}"


def tag(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Get a manifest by its tag."""
    image = dice.choice(shelf.images)
    with Connection(url) as connection:
        body = connection.get(f"/v2/{image.repository}/manifests/{image.tag}", **ACCEPT)
    _prove(body, image.digest)


def digest(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Get a manifest by its digest, twenty times."""
    image = dice.choice(shelf.images)
    with Connection(url) as connection:
        for _ in range(20):
            path = f"/v2/{image.repository}/manifests/{image.digest}"
            _prove(connection.get(path, **ACCEPT), image.digest)


def blob(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Get a blob; half of the time one of a few that stay, else one of many that come and go."""
    chosen = dice.choice(shelf.blobs if dice.random() < 0.5 else shelf.blobs[:6])
    with Connection(url) as connection:
        _prove(connection.get(shelf.where(chosen)), chosen.digest)


def image(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Get the config and all layers of an image."""
    chosen = dice.choice(shelf.images)
    with Connection(url) as connection:
        for layer in chosen.blobs:
            body = connection.get(f"/v2/{chosen.repository}/blobs/{layer.digest}")
            _prove(body, layer.digest)


def ranges(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Put a blob together from three ranges."""
    chosen = dice.choice(shelf.blobs)
    cuts = [0, *sorted(dice.sample(range(1, chosen.size), 2)), chosen.size]
    whole = b""
    with Connection(url) as connection:
        for start, stop in pairwise(cuts):
            path = shelf.where(chosen)
            status, begin, length = connection.ask(path, Range=f"bytes={start}-{stop - 1}")
            assert status == 206, f"{path} {start}-{stop - 1} → {status}"
            assert length == stop - start, f"{length} bytes for {start}-{stop - 1}"
            part = bytearray(begin)
            while len(part) < length:
                part += connection.piece(length - len(part))
            whole += part
    _prove(whole, chosen.digest)


def join(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Four clients want the same blob at the same moment."""
    chosen = dice.choice(shelf.blobs)
    failures: list[Exception] = []
    start = threading.Barrier(4)

    def one() -> None:
        try:
            with Connection(url) as connection:
                start.wait(30)
                _prove(connection.get(shelf.where(chosen)), chosen.digest)
        except (AssertionError, OSError, threading.BrokenBarrierError) as error:
            failures.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert not failures, repr(failures[0])


def slow(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Read a blob in small pieces with pauses, over some seconds."""
    chosen = dice.choice(shelf.blobs)
    with Connection(url, receive_buffer=_PIECE) as connection:
        status, begin, length = connection.ask(shelf.where(chosen))
        assert status == 200, f"{shelf.where(chosen)} → {status}"
        body = bytearray(begin)
        pause = 3 / max(length / _PIECE, 1)
        while len(body) < length:
            body += connection.piece(min(_PIECE, length - len(body)))
            time.sleep(pause)
    _prove(bytes(body), chosen.digest)


def leave(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Hang up in the middle of a body, politely or not."""
    chosen = dice.choice(shelf.blobs)
    with Connection(url, receive_buffer=_PIECE) as connection:
        status, begin, length = connection.ask(shelf.where(chosen))
        assert status == 200, f"{shelf.where(chosen)} → {status}"
        left = dice.randrange(length) - len(begin)
        while left > 0:
            left -= len(connection.piece(min(left, _PIECE)))
        if dice.random() < 0.5:
            connection.reset()


def absent(url: str, shelf: Shelf, dice: random.Random) -> None:
    """Ask for what does not exist."""
    repository = shelf.images[0].repository
    nothing = f"sha256:{dice.randbytes(32).hex()}"
    paths = (f"manifests/no-{dice.randrange(50)}", f"manifests/{nothing}", f"blobs/{nothing}")
    with Connection(url) as connection:
        path = f"/v2/{repository}/{dice.choice(paths)}"
        status, begin, _ = connection.ask(path)
        assert status == 404, f"{path} → {status} {begin!r}"


_ACTS = {
    tag: 20,
    digest: 10,
    blob: 20,
    image: 5,
    ranges: 10,
    join: 4,
    slow: 3,
    leave: 10,
    absent: 10,
}
