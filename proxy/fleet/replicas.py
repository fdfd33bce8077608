"""The replicas of this fleet: each writes a heartbeat with its state to Redis."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final

from proxy.core.errors import FleetUnavailable
from proxy.core.tolerant_json import read_object
from proxy.fleet.protocol import ADDRESS
from proxy.fleet.store import Argument, Store

BEAT_SECONDS: Final = 2.0
LOST_SECONDS: Final = 10.0
"""A replica without a heartbeat for this time counts as gone."""

ROWS_A_SECOND: Final = 20
"""A replica reads about as many rows a second at most: Redis sends the list of all to each."""

FORGET_SECONDS: Final = 3600.0
MAX_REPLICAS: Final = 1000

ReplicaInfo = dict[str, Any]


def reading_seconds(replicas: int) -> float:
    """Return how often a replica reads the list, which has so many rows."""
    return max(BEAT_SECONDS, replicas / ROWS_A_SECOND)


class Replicas:
    """The live replicas. ``describe`` returns the state of this one, as JSON values."""

    def __init__(self, store: Store, address: str, describe: Callable[[], ReplicaInfo]) -> None:
        self._store = store
        self.address = address
        self._describe = describe
        self._known: dict[str, ReplicaInfo] = {}
        self._rows = 0
        """How long the list was, with those that no longer live."""

    def others(self) -> list[str]:
        """Return the addresses of the other live replicas, as of the last reading."""
        return [address for address in self._known if address != self.address]

    def all(self) -> Mapping[str, ReplicaInfo]:
        """Return the last state of every replica, this one included, by address."""
        return self._known | {self.address: self._describe()}

    async def beat(self) -> None:
        """Write heartbeats and read those of the others, until cancelled."""
        due = 0.0
        while True:
            with suppress(FleetUnavailable):
                if time.monotonic() < due:
                    await self._store.run_all(*self._sign_of_life())
                else:
                    await self._beat_once()
                    due = time.monotonic() + reading_seconds(self._rows) - BEAT_SECONDS / 2
            await asyncio.sleep(BEAT_SECONDS)

    async def leave(self) -> None:
        """Remove this replica."""
        with suppress(FleetUnavailable):
            await self._store.run("HDEL", self._store.key("replicas"), self.address)

    def _sign_of_life(self) -> list[list[Argument]]:
        key, now = self._store.key("replicas"), self._store.now()
        said = json.dumps(self._describe() | {"seen_at": now})
        return [["HSET", key, self.address, said], ["EXPIRE", key, int(FORGET_SECONDS)]]

    async def _beat_once(self) -> None:
        key, now = self._store.key("replicas"), self._store.now()
        *_, rows = await self._store.run_all(*self._sign_of_life(), ["HGETALL", key])
        if isinstance(rows, Exception):
            return
        self._rows = len(rows)
        self._known, forgotten = _read(rows, now)
        if forgotten:
            await self._store.run("HDEL", key, *forgotten)


def _read(rows: Any, now: float) -> tuple[dict[str, ReplicaInfo], list[str]]:
    """Return the live replicas, and those to remove. Malformed states are ignored."""
    pairs = rows.items() if isinstance(rows, dict) else zip(rows[::2], rows[1::2], strict=False)
    known: dict[str, ReplicaInfo] = {}
    forgotten: list[str] = []
    for field, value in pairs:
        address, facts = field.decode("utf-8", "replace"), read_object(value)
        seen_at = facts.get("seen_at")
        if not isinstance(seen_at, int | float):
            continue
        if now - seen_at > FORGET_SECONDS:
            forgotten.append(field)
        elif now - seen_at <= LOST_SECONDS and ADDRESS.fullmatch(address):
            known[address] = facts
    return dict(list(known.items())[:MAX_REPLICAS]), forgotten
