"""What the registry has: new images all the time, and tags that move to them."""

import asyncio
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import Final, NamedTuple

from tests.fakes import content, faults
from tests.fakes.upstream import FakeUpstream

REPOSITORIES: Final = [f"library/app{number}" for number in range(4)]
EVERY_SECONDS: Final = 2.5
RATE: Final = 1_500_000
"""Bytes a second of one body: faults fall into the middle of downloads."""


class Name(NamedTuple):
    """A repository and a tag."""

    repository: str
    tag: str


@dataclass(frozen=True)
class Traffic:
    """What the registry has sent of one blob."""

    size: int
    sent: int
    requests: int
    first: float
    last: float

    @property
    def bodies(self) -> float:
        """How many times its size."""
        return self.sent / self.size


class World:
    """The images so far, and where each tag has pointed."""

    def __init__(self, upstream: FakeUpstream, rng: random.Random) -> None:
        self.upstream = upstream
        self.sizes: dict[str, int] = {}
        self.history: defaultdict[Name, list[str]] = defaultdict(list)
        """The digests of each tag, the latest last."""
        self._rng = rng
        self._names: list[Name] = []
        upstream.fault(faults.slow(RATE), kind="blob", method="GET")
        for _ in REPOSITORIES:
            self.grow()

    async def run(self) -> None:
        """Push an image now and then."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            self.grow()

    def grow(self) -> None:
        """Push an image with a tag of its own, and move `latest` to it."""
        number, rng = len(self._names), self._rng
        layers = (rng.randint(1_000_000, 3_000_000), rng.randint(50_000, 400_000), 2_000)
        image = content.image(f"chaos {number}", layers=layers)
        repository = REPOSITORIES[number % len(REPOSITORIES)]
        name = Name(repository, f"v{number}")
        self.upstream.add(repository, image, (name.tag, "latest"))
        self.history[name].append(image.digest)
        self.history[Name(repository, "latest")].append(image.digest)
        self.sizes |= {digest: len(data) for digest, data in image.blobs.items()}
        self._names.append(name)

    def choose(self, rng: random.Random) -> Name:
        """Return what a client pulls next: mostly what is new."""
        kind = rng.random()
        if kind < 0.4:
            return Name(rng.choice(REPOSITORIES), "latest")
        return rng.choice(self._names[-6:] if kind < 0.8 else self._names)

    def traffic(self) -> dict[str, Traffic]:
        """Return what was sent of each blob that anybody has asked for."""
        found: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
        for record in self.upstream.requests:
            if record.kind == "blob" and record.begun and record.reference in self.sizes:
                found[record.reference].append((record.sent, record.at))
        return {
            digest: Traffic(
                self.sizes[digest],
                sum(sent for sent, _ in parts),
                len(parts),
                min(at for _, at in parts),
                max(at for _, at in parts),
            )
            for digest, parts in found.items()
        }

    def is_large(self, digest: str) -> bool:
        """Return True for a blob whose download takes a while."""
        return self.sizes.get(digest, 0) >= 1_000_000

    def now(self) -> float:
        """Return the time of the registry's records."""
        return time.time()
