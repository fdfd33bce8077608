"""What the registry has: new images all the time, and tags that move to them."""

import asyncio
import random
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
class Sent:
    """One body that the registry began to send. ``by`` is the replica that asked."""

    at: float
    bodies: float
    """What was sent of it, as a part of its size."""
    by: str


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

    def traffic(self) -> dict[str, list[Sent]]:
        """Return what was sent of each blob, in order of time."""
        found: defaultdict[str, list[Sent]] = defaultdict(list)
        for record in self.upstream.requests:
            digest = record.reference
            if record.kind == "blob" and record.begun and digest in self.sizes:
                part = record.sent / self.sizes[digest]
                found[digest].append(Sent(record.at, part, record.client.rpartition(".")[2]))
        return found

    def is_large(self, digest: str) -> bool:
        """Return True for a blob whose download takes a while."""
        return self.sizes.get(digest, 0) >= 1_000_000
