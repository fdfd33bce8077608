"""What the upstream holds, with the bytes that belong to every name, and how badly it delivers."""

import random
from typing import Final, NamedTuple

from tests.fakes import faults
from tests.fakes.content import Image, blob, image, multi_platform
from tests.fakes.records import Record
from tests.fakes.replies import Reply
from tests.fakes.upstream import FakeUpstream

MOVING: Final = ("team/moving", "latest")
HUGE: Final = "team/huge"
_SIZES: Final = ((1, 4096), (4096, 150_000), (150_000, 700_000))


class Ware(NamedTuple):
    """One image of one platform, with the name that it is pulled by."""

    repo: str
    tag: str
    image: Image

    @property
    def digests(self) -> frozenset[str]:
        """All that must be held for it to be held whole."""
        return frozenset({self.image.digest, *self.image.blobs})

    @property
    def pin(self) -> str:
        """Its name as an operator pins it."""
        return f"docker.io/{self.repo}:{self.tag}"


class World:
    """About four times what fits into the budget, some of it shared by two repositories."""

    def __init__(self, upstream: FakeUpstream, rng: random.Random, budget: int) -> None:
        self.upstream = upstream
        self.wares: list[Ware] = []
        self.bytes: dict[str, bytes] = {}
        self.manifests: set[str] = set()
        self.named: dict[tuple[str, str], set[str]] = {}
        """Every digest that a tag has ever led to."""
        self._rng = rng
        self._fill(budget)
        upstream.fault(self._weather, kind="blob", method="GET")

    def turn(self) -> None:
        """Let the moving tag name another image."""
        repo, tag = MOVING
        self.upstream.retag(repo, tag, self._rng.choice(sorted(self.named[MOVING])))

    def _fill(self, budget: int) -> None:
        rng, size, number = self._rng, 0, 0
        while size < 4 * budget:
            layers = [rng.randint(*rng.choice(_SIZES)) for _ in range(rng.randint(1, 4))]
            made = image(number, layers, docker=number % 3 == 0)
            self._shelve(f"team/app{number % 5}", f"v{number}", made)
            if number % 4 == 0:
                self._shelve("team/other", f"v{number}", made)
            size += sum(layers)
            number += 1
        for ware in self.wares[:3]:
            self._shelve(*MOVING, ware.image)
        many = multi_platform("many", layers=(50_000,))
        self.upstream.add("team/many", many)
        self._learn("team/many", "latest", many.digest, many.manifest)
        for child in many.children:
            assert isinstance(child, Image)
            self._shelve("team/many", f"v-{len(self.wares)}", child)
        large = blob(budget + 100_000, "huge")
        self.bytes[self.upstream.add_blob(HUGE, large)] = large

    def _shelve(self, repo: str, tag: str, made: Image) -> None:
        self.upstream.add(repo, made, tag)
        self.wares.append(Ware(repo, tag, made))
        self._learn(repo, tag, made.digest, made.manifest)
        self.bytes |= made.blobs

    def _learn(self, repo: str, tag: str, digest: str, manifest: bytes) -> None:
        self.bytes[digest] = manifest
        self.manifests.add(digest)
        self.named.setdefault((repo, tag), set()).add(digest)

    def _weather(self, record: Record, reply: Reply) -> Reply:
        """Slow bodies, so that kills fall into downloads; some of unknown size, some broken."""
        rng, size = self._rng, max(2, len(reply.body))
        rate = rng.choice((300_000, 1_000_000, 4_000_000, 50_000_000))
        reply = faults.slow(rate)(record, reply)
        match rng.randrange(20):
            case 0:
                return faults.truncate(rng.randrange(1, size))(record, reply)
            case 1 | 2:  # the last byte, which no range gets early, and some time before the end
                return faults.chunked()(record, faults.corrupt()(record, reply))
            case 3 | 4 | 5 | 6:
                return faults.chunked()(record, reply)
            case _:
                return reply
