"""Clients that pull all the time, and judge every answer that they get."""

import asyncio
import random
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Final

from aiohttp import ClientConnectorError, ClientError, ClientResponse, ClientSession

from tests.crash.world import MOVING, Ware, World

_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")
_PAUSE: Final = 0.05
"""Seconds until the next attempt while nobody listens."""


@dataclass
class Judgement:
    """What became of all requests so far."""

    answers: Counter[str] = field(default_factory=Counter)
    """`whole`, `part`, `head`, `refused` (an error status), `broken` (visibly), `left`, `closed` (nobody listened)."""
    wrong: list[str] = field(default_factory=list)
    """Answers that looked good and were not."""
    hits: dict[tuple[str, str], float] = field(default_factory=dict)
    """When (repository, digest) was last answered from here, by the wall clock."""
    acknowledged: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever something that was not held has been delivered whole."""

    def blame(self, what: str) -> None:
        """Note an answer that must never be given."""
        self.wrong.append(what)


class Crowd:
    """Some clients at once; `gate` holds them back between two requests."""

    def __init__(self, client: ClientSession, world: World, judgement: Judgement) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.busy = 0
        self._client = client
        self._world = world
        self._judgement = judgement

    async def pull_for_ever(self, rng: random.Random) -> None:
        """Be one client."""
        acts = (self._image, self._image, self._image, self._blob, self._part, self._tag, self._go)
        while True:
            async with self.turn():
                await rng.choice(acts)(rng)
            await asyncio.sleep(0)

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for the gate, and count as busy."""
        await self.gate.wait()
        self.busy += 1
        try:
            yield
        finally:
            self.busy -= 1

    async def fetch(self, repo: str, digest: str, method: str = "GET", **headers: str) -> bool:
        """Ask for content by digest; return whether the answer was good."""
        kind = "manifests" if digest in self._world.manifests else "blobs"
        return await self._ask(method, f"/v2/{repo}/{kind}/{digest}", {digest}, headers)

    async def pull(self, ware: Ware) -> bool:
        """Pull an image by its tag; return whether all of it came."""
        named = self._world.named[ware.repo, ware.tag]
        got = await self._ask("GET", f"/v2/{ware.repo}/manifests/{ware.tag}", named, {})
        answers = [await self.fetch(ware.repo, digest) for digest in sorted(ware.digests)]
        return got and all(answers)

    def was_held(self, repo: str, digest: str, since: float) -> bool:
        """Tell whether content has been answered from here since a moment."""
        return self._judgement.hits.get((repo, digest), 0.0) >= since

    async def _image(self, rng: random.Random) -> None:
        await self.pull(rng.choice(self._world.wares))

    async def _tag(self, rng: random.Random) -> None:
        repo, tag = rng.choice([*self._world.named, MOVING])
        if rng.random() < 0.3:
            self._world.turn()
        method = rng.choice(("GET", "HEAD"))
        named = self._world.named[repo, tag]
        await self._ask(method, f"/v2/{repo}/manifests/{tag}", named, {})

    async def _blob(self, rng: random.Random) -> None:
        ware = rng.choice(self._world.wares)
        method = rng.choice(("GET", "GET", "HEAD"))
        await self.fetch(ware.repo, rng.choice(sorted(ware.digests)), method)

    async def _part(self, rng: random.Random) -> None:
        ware = rng.choice(self._world.wares)
        digest = rng.choice(sorted(ware.image.blobs))
        size = len(self._world.bytes[digest])
        first = rng.randrange(size)
        last = rng.randint(first, min(size - 1, first + 200_000))
        await self.fetch(ware.repo, digest, Range=f"bytes={first}-{last}")

    async def _go(self, rng: random.Random) -> None:
        """Leave in the middle of a body."""
        ware = rng.choice(self._world.wares)
        path = f"/v2/{ware.repo}/blobs/{rng.choice(sorted(ware.image.blobs))}"
        try:
            async with asyncio.timeout(60), self._client.get(path) as answer:
                await answer.content.read(rng.choice((0, 1, 10_000, 100_000)))
                answer.close()
            self._judgement.answers["left"] += 1
        except (ClientError, OSError) as error:
            await self._broken(error)

    async def _ask(
        self, method: str, path: str, expected: set[str], headers: Mapping[str, str]
    ) -> bool:
        """Send one request and judge the answer; `expected` are the digests it may be."""
        said = f"{method} {path} {dict(headers)}"
        try:
            async with asyncio.timeout(60):
                async with self._client.request(method, path, headers=headers) as answer:
                    body = await answer.read()
        except TimeoutError:
            self._judgement.blame(f"{said}: no end after a minute")
            return False
        except (ClientError, OSError) as error:
            await self._broken(error)
            return False
        return self._judge(said, answer, body, expected)

    async def _broken(self, error: Exception) -> None:
        closed = isinstance(error, ClientConnectorError)
        self._judgement.answers["closed" if closed else "broken"] += 1
        await asyncio.sleep(_PAUSE)

    def _judge(self, said: str, answer: ClientResponse, body: bytes, expected: set[str]) -> bool:
        judgement, told = self._judgement, answer.headers.get("Docker-Content-Digest")
        if answer.status not in (200, 206):
            judgement.answers["refused"] += 1
            if answer.status < 500:
                judgement.blame(f"{said}: {answer.status} {body[:200]!r} for what upstream has")
            return False
        digest = told or min(expected)
        if digest not in expected:
            judgement.blame(f"{said}: answered by {told}")
            return False
        whole = self._world.bytes[digest]
        wanted, kind = _wanted(answer, whole)
        if answer.method == "HEAD":
            length = answer.headers.get("Content-Length")
            if length not in (None, str(len(whole))):
                judgement.blame(f"{said}: Content-Length {length}, not {len(whole)}")
            judgement.answers["head"] += 1
            return True
        if body != wanted:
            judgement.blame(f"{said}: {answer.status} with {len(body)} wrong bytes")
            return False
        judgement.answers[kind] += 1
        self._note(answer, digest)
        return True

    def _note(self, answer: ClientResponse, digest: str) -> None:
        """Remember what the answer says of the cache."""
        cache = answer.headers.get("Cache-Status", "")
        repo = re.sub(r"^/v2/(.+)/(?:blobs|manifests)/.*$", r"\1", answer.url.path)
        if "hit" in cache:
            self._judgement.hits[repo, digest] = time.time()
        elif answer.status == 200:
            self._judgement.acknowledged.set()


def _wanted(answer: ClientResponse, whole: bytes) -> tuple[bytes, str]:
    """Return the bytes that an answer's own headers promise."""
    if answer.status == 200:
        return whole, "whole"
    match = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if match is None or int(match[3]) != len(whole):
        return b"no such range", "part"
    return whole[int(match[1]) : int(match[2]) + 1], "part"
