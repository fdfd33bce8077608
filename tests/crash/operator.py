"""An operator who is never at rest: pins come and go, content is evicted and verified."""

import asyncio
import random
import time
from typing import Any, Final

from aiohttp import ClientError

from tests.crash import disk
from tests.crash.crowd import Crowd
from tests.crash.victim import Victim
from tests.crash.world import MOVING, Ware, World

PINNABLE: Final = 400_000
"""Most bytes of an image that is pinned; a few of these leave room for everything else."""

_KEPT_WITHIN: Final = 3.0


class Operator:
    """Speaks through the admin socket, and knows what has been acknowledged."""

    def __init__(self, victim: Victim, world: World, crowd: Crowd) -> None:
        self.pinned: dict[str, bool | None] = {}
        """Pins by name: acknowledged, acknowledged as removed, or (None) in doubt."""
        self.kept: dict[str, frozenset[str]] = {}
        """What lay on the disk, whole, while its pin was acknowledged."""
        self.acknowledged = asyncio.Event()
        self.acknowledgements = 0
        self.filled = 0
        self.wrong: list[str] = []
        """Answers that no operator should ever get."""
        self._victim = victim
        self._crowd = crowd
        self._changing = asyncio.Lock()
        """Held from before a change of the pins is asked for until its answer is noted."""
        self._pinnable = [ware for ware in world.wares if _may_be_pinned(ware)][:6]

    async def pin_for_ever(self, rng: random.Random) -> None:
        """Add and remove pins."""
        while True:
            await asyncio.sleep(rng.uniform(0, 0.1))
            async with self._crowd.turn():
                ware = rng.choice(self._pinnable)
                known = self.pinned.get(ware.pin, False)
                if known is False:
                    await self._pin(ware)
                elif known and ware.pin not in self.kept:
                    await self._fill(ware)
                elif known and (rng.random() < 0.2 or len(self.kept) > 2):
                    await self._unpin(ware)

    async def meddle_for_ever(self, rng: random.Random) -> None:
        """Evict and verify by hand, list, and name what is running."""
        while True:
            await asyncio.sleep(rng.uniform(0, 0.3))
            async with self._crowd.turn():
                await self._meddle(rng)

    async def settle(self) -> str | None:
        """After a start: compare the pins with what was acknowledged; return what is wrong.

        No pin is changed meanwhile: one acknowledged after the list was made would look lost.
        """
        async with self._changing:
            return await self._compared()

    async def _compared(self) -> str | None:
        async with self._victim.operator() as client, client.get("/-/pins") as answer:
            document: dict[str, Any] = await answer.json()
        there = {pin["pin"] for pin in document["pins"]}
        for name, known in self.pinned.items():
            if known and name not in there:
                return f"the pin {name} was acknowledged and is gone: {document}"
            if known is False and name in there:
                return f"the pin {name} was removed and is back: {document}"
            self.pinned[name] = name in there
        return None

    async def _meddle(self, rng: random.Random) -> None:
        yes = ("true", "false")
        match rng.randrange(4):
            case 0:
                await self._ask("POST", f"/-/evict?bytes={rng.randrange(1, 500_000)}")
            case 1:
                words = f"repair={rng.choice(yes)}&restart={rng.choice(yes)}"
                rate = rng.choice((0, 2_000_000))
                path = f"/-/verify?{words}&rate={rate}"
                await self._ask("POST", path, longest=rng.uniform(0, 0.5))
            case 2:
                await self._ask("GET", "/-/images")
            case _:
                body = f"{rng.choice(self._pinnable).pin}\nsomething@@@wrong\n"
                await self._ask("PUT", "/-/in-use?source=node&ttl=1", body=body)

    async def _pin(self, ware: Ware) -> None:
        async with self._changing:
            self.pinned[ware.pin] = None
            status = await self._ask("PUT", f"/-/pins?pin={ware.pin}")
            if status == 409:  # too much is pinned already
                self.pinned[ware.pin] = False
            if status != 200:
                return
            self.pinned[ware.pin] = True
            self._acknowledge()
        await self._fill(ware)

    async def _fill(self, ware: Ware) -> None:
        """Have all of a pinned image held; what is answered as held has been synced before."""
        if not await self._crowd.pull(ware) or not await self._lies_there(ware):
            return
        since = time.time()
        await self._crowd.pull(ware)
        if all(self._crowd.was_held(ware.repo, digest, since) for digest in ware.digests):
            self.kept[ware.pin] = ware.digests
            self.filled += 1

    def _acknowledge(self) -> None:
        self.acknowledgements += 1
        self.acknowledged.set()

    async def _unpin(self, ware: Ware) -> None:
        self.kept.pop(ware.pin, None)
        async with self._changing:
            self.pinned[ware.pin] = None
            if await self._ask("DELETE", f"/-/pins?pin={ware.pin}") == 200:
                self.pinned[ware.pin] = False
                self._acknowledge()

    async def _lies_there(self, ware: Ware) -> bool:
        """Tell whether all of it came to lie on the disk before the process died."""
        end = asyncio.get_running_loop().time() + _KEPT_WITHIN
        while asyncio.get_running_loop().time() < end and self._victim.is_alive:
            if ware.digests <= disk.look(self._victim.storage).held.keys():
                return True
            await asyncio.sleep(0.01)
        return False

    async def _ask(
        self, method: str, path: str, body: str | None = None, longest: float = 30.0
    ) -> int | None:
        """Return the status, or None when there was no whole answer; it may take `longest`."""
        try:
            async with (
                asyncio.timeout(longest),
                self._victim.operator() as client,
                client.request(method, path, data=body) as answer,
            ):
                said = await answer.text()
        except (ClientError, OSError):  # a TimeoutError is an OSError
            return None
        dying = answer.status == 503 and self._victim.loses_power and "disk" in said
        if answer.status not in (200, 409) and not dying:
            self.wrong.append(f"{method} {path}: {answer.status} {said[:300]}")
        return answer.status


def _may_be_pinned(ware: Ware) -> bool:
    size = sum(len(blob) for blob in ware.image.blobs.values())
    return size < PINNABLE and (ware.repo, ware.tag) != MOVING
