"""Which tags and indexes have named a digest, on any replica.

A client gets a tag from one replica and asks another for its digest. A cool-down may refuse a
digest that no tag names, so a replica looks here before it does.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from proxy.core.errors import DigestInvalid, FleetUnavailable, TagInvalid
from proxy.core.names import Digest, Tag, Target, parse_digest, parse_tag
from proxy.core.records import TagRecord
from proxy.fleet.store import Store
from proxy.fleet.tag_store import FACT_SECONDS

MAX_NAMES: Final = 16
"""The latest names of a digest that are kept."""

MAX_WAITING: Final = 1000
"""Maximum number of names that wait to be sent; others are not sent."""

Find = Callable[[Target, Tag], Awaitable[TagRecord | None]]
"""Records a tag that this replica does not know, with its history."""


class DigestNames:
    """The names of the fleet. Run ``run`` as a task."""

    def __init__(self, store: Store, find: Find, is_shared: Callable[[str], bool]) -> None:
        """``is_shared`` returns True if all clients of an upstream may see the same tags."""
        self._store = store
        self._find = find
        self._is_shared = is_shared
        self._waiting: asyncio.Queue[tuple[str, str]] = asyncio.Queue(MAX_WAITING)

    def add(self, target: Target, names: Iterable[tuple[Digest, str]]) -> None:
        """Send digests later, each with a tag or index that is served and names it."""
        if not self._is_shared(target.upstream):
            return
        for digest, name in names:
            if not self._waiting.full():
                self._waiting.put_nowait((self._key(target, digest), name))

    async def run(self) -> None:
        """Send names, until cancelled. Those that Redis does not take are dropped."""
        while True:
            key, name = await self._waiting.get()
            try:
                await self._store.run_all(
                    ["LREM", key, 0, name],
                    ["LPUSH", key, name],
                    ["LTRIM", key, 0, MAX_NAMES - 1],
                    ["EXPIRE", key, int(FACT_SECONDS)],
                )
            except FleetUnavailable:
                continue

    async def learn(self, target: Target, digest: Digest) -> list[Digest] | None:
        """Record the tags that name a digest; return the indexes that list it.

        None if no replica knows a name.
        """
        names = await self._names(target, digest)
        indexes: list[Digest] = []
        for name in names:
            try:
                if ":" in name:
                    indexes.append(parse_digest(name))
                else:
                    await self._find(target, parse_tag(name))
            except (DigestInvalid, TagInvalid):
                continue
        return indexes if names else None

    async def _names(self, target: Target, digest: Digest) -> list[str]:
        if not self._is_shared(target.upstream):
            return []
        try:
            found: Any = await self._store.run(
                "LRANGE", self._key(target, digest), 0, MAX_NAMES - 1
            )
        except FleetUnavailable:
            return []
        return [name.decode(errors="replace") for name in found or ()]

    def _key(self, target: Target, digest: Digest) -> str:
        return self._store.key("names", target.upstream, target.repo, digest)
