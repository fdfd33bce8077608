"""Clients that pull whole images through the balancer all the time, and verify every byte."""

import asyncio
import hashlib
import itertools
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout

from tests.fleet.chaos.spells import Spells
from tests.fleet.chaos.world import Name, World

ACCEPT: Final = "application/vnd.oci.image.manifest.v1+json"
AGREE_SECONDS: Final = 1.0
"""Within this time, and what the machine was late, all replicas serve what one has seen."""

APART: Final = frozenset({"redis", "cut from redis", "flush", "killed", "stopped"})
"""Faults through which a replica may miss what another one has seen, until they have ended."""

_TICK: Final = 0.05
"""Seconds between two looks at how late this process is."""

_AT_ONCE: Final = 3
"""Blobs of one image, as containerd does."""

_ATTEMPTS: Final = 6


class Failed(Exception):
    """A request of a client failed."""


@dataclass
class Served:
    """How far one tag is: the place of a digest in its history, and since when it is known."""

    place: int = -1
    ended: float = 0.0


@dataclass
class Judgement:
    """What became of all requests."""

    pulls: int = 0
    requests: int = 0
    bytes: int = 0
    broken: int = 0
    """Bodies that broke off because their replica was killed, and went on with a second request."""
    sources: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    wrong: list[str] = field(default_factory=list)
    """Broken promises."""
    tags: defaultdict[tuple[Name, str], Served] = field(default_factory=lambda: defaultdict(Served))
    """What each replica has served; the fleet's newest is under the address ''."""
    went_back: int = 0
    """Older digests after newer ones, from replicas that a fault had kept apart."""

    def blame(self, what: str) -> None:
        """Note a broken promise."""
        self.wrong.append(f"{time.strftime('%H:%M:%S')} {what}")


class Lateness:
    """How much later than due this process went on; the replicas share its machine."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            due = time.time() + _TICK
            await asyncio.sleep(_TICK)
            self._late.append((time.time(), time.time() - due))

    def since(self, began: float) -> float:
        """Return the seconds that were lost since then."""
        late = itertools.takewhile(lambda one: one[0] >= began, reversed(self._late))
        return sum(seconds for _, seconds in late)


class Crowd:
    """Clients of one balancer."""

    def __init__(self, url: str, world: World, spells: Spells, judgement: Judgement) -> None:
        self._url = url
        self._world = world
        self._spells = spells
        self._judgement = judgement
        self.lateness = Lateness()

    async def pull_forever(self, rng: random.Random) -> None:
        """Be one client."""
        timeout = ClientTimeout(total=180, sock_connect=10, sock_read=60)
        async with ClientSession(timeout=timeout, auto_decompress=False) as session:
            while True:
                try:
                    await self.pull(session, self._world.choose(rng))
                    self._judgement.pulls += 1
                except Failed as failed:
                    self._judgement.blame(str(failed))
                await asyncio.sleep(rng.random())

    async def pull(self, session: ClientSession, name: Name) -> None:
        """Pull an image. Raises ``Failed``."""
        began = time.time()
        path = f"/v2/{name.repository}/manifests/{name.tag}"
        transfer = _Transfer(self, session, path)
        body = await transfer.run()
        self._judge_tag(name, "sha256:" + hashlib.sha256(body).hexdigest(), transfer, began)
        manifest = json.loads(body)
        slots = asyncio.Semaphore(_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            for part in (manifest["config"], *manifest["layers"]):
                group.create_task(self._blob(session, name, part, slots))
        self._judgement.slowest = max(self._judgement.slowest, time.time() - began)

    async def _blob(
        self, session: ClientSession, name: Name, part: Mapping[str, Any], slots: asyncio.Semaphore
    ) -> None:
        digest = part["digest"]
        async with slots:
            transfer = _Transfer(self, session, f"/v2/{name.repository}/blobs/{digest}")
            try:
                body = await transfer.run()
            except Failed as failed:
                self._judgement.blame(str(failed))
                return
        if len(body) != part["size"] or digest != "sha256:" + hashlib.sha256(body).hexdigest():
            self._judgement.blame(f"{transfer}: {len(body)} wrong bytes of {part['size']}")
        self._judgement.bytes += len(body)

    def _judge_tag(self, name: Name, digest: str, transfer: "_Transfer", began: float) -> None:
        history, tags = self._world.history[name], self._judgement.tags
        if digest not in history:
            self._judgement.blame(f"{transfer}: {digest} was never this tag")
            return
        place, ended = history.index(digest), time.time()
        own, newest = tags[name, transfer.replica], tags[name, ""]
        said = f"{transfer}: went back from {{}} to {place}"
        if own.ended < began and place < own.place:
            self._judgement.blame(said.format(own.place) + " on the same replica")
        elif newest.ended + self._agree_seconds(newest) < began and place < newest.place:
            if self._spells.between(newest.ended, ended, APART):
                self._judgement.went_back += 1
            else:
                self._judgement.blame(said.format(newest.place))
        for served in (own, newest):
            if place > served.place:
                served.place, served.ended = place, ended

    def _agree_seconds(self, newest: Served) -> float:
        return AGREE_SECONDS + self.lateness.since(newest.ended)

    async def request(
        self, session: ClientSession, path: str, headers: Mapping[str, str]
    ) -> ClientResponse:
        """Send one request."""
        self._judgement.requests += 1
        return await session.get(self._url + path, headers=headers)

    def count(self, response: ClientResponse) -> None:
        """Count what an answer says of its source."""
        cache = response.headers.get("Cache-Status", "")
        found = re.search(r'source="?(\w+)|\b(hit|fwd=[\w-]+)', cache)
        self._judgement.sources[found[0] if found else "?"] += 1

    def was_killed(self, replica: str, began: float) -> bool:
        """Return True, and count it, if a replica was killed since."""
        spells = self._spells.between(began, time.time(), frozenset({"killed"}), settle=1.0)
        if not any(spell.place == replica for spell in spells):
            return False
        self._judgement.broken += 1
        return True


class _Transfer:
    """One GET. A body whose replica is killed goes on with a second one, as clients do."""

    def __init__(self, crowd: Crowd, session: ClientSession, path: str) -> None:
        self._crowd = crowd
        self._session = session
        self._path = path
        self._body = bytearray()
        self.replica = ""
        """The address of the one that answered last."""
        self.began = time.time()

    def __str__(self) -> str:
        taken = time.time() - self.began
        return f"GET {self._path} from {self.replica or 'none'} after {taken:.1f} s"

    async def run(self) -> bytes:
        """Return the body. Raises ``Failed``."""
        for _ in range(_ATTEMPTS):
            self.began = time.time()
            self.replica = ""
            try:
                await self._attempt()
            except (ClientError, TimeoutError, OSError) as error:
                if not self.replica or not self._crowd.was_killed(self.replica, self.began):
                    raise Failed(f"{self} at {len(self._body)}: {error!r}") from error
                await asyncio.sleep(0.2)
            else:
                return bytes(self._body)
        raise Failed(f"{self}: broken off {_ATTEMPTS} times")

    async def _attempt(self) -> None:
        headers = {"Accept": ACCEPT}
        if self._body:
            headers["Range"] = f"bytes={len(self._body)}-"
        async with await self._crowd.request(self._session, self._path, headers) as response:
            self.replica = response.headers.get("X-Replica", "").rpartition(", ")[2]
            if response.status not in (200, 206):
                text = (await response.read())[:300]
                raise Failed(
                    f"{self}: {response.status} {text!r} {response.headers.get('X-Replica')}"
                )
            self._crowd.count(response)
            if response.status == 200:
                self._body.clear()
            async for piece in response.content.iter_any():
                self._body += piece
