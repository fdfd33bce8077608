"""Pins that were added while running, shared by all replicas.

Redis has a hash of names: ``1`` is pinned, ``0`` no longer. If it is lost, every replica publishes
its pins again. A removed pin may return in this way, which does no harm.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

import structlog

from proxy.core.errors import FleetUnavailable, StorageError
from proxy.core.tolerant_json import read_object
from proxy.fleet.store import Store, Subscription

CHANNEL: Final = "pins"
MAX_NAMES: Final = 10_000
RETRY_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)


class LocalPins(Protocol):
    """The pins of this replica."""

    @property
    def on_change(self) -> list[Callable[[str, bool], None]]:
        """Called with the name of a pin that changed here, and True if it was added."""

    def added(self) -> list[str]:
        """Return the names of the pins that were added while running."""

    async def follow(self, changes: Mapping[str, bool]) -> None:
        """Pin and unpin as other replicas did. Raises ``StorageError``."""


class SharedPins:
    """The pins of all replicas. Run ``run`` as a task."""

    def __init__(self, store: Store, pins: LocalPins) -> None:
        self._store = store
        self._pins = pins
        self._key = store.key("pins")
        self._own: dict[str, bool] = {}
        self._heard: dict[str, bool] = {}
        self._has_gap = False
        self._woken = asyncio.Event()
        pins.on_change.append(self._on_change)
        store.subscribe(CHANNEL, Subscription(self._on_message, self._on_gap))

    async def run(self) -> None:
        """Exchange changes with the other replicas, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._tell()
                if self._has_gap:
                    await self._compare()
                heard, self._heard = self._heard, {}
                if heard:
                    await self._pins.follow(heard)
            except (FleetUnavailable, StorageError) as error:
                log.debug("pins are not shared yet", reason=type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
                self._on_gap()

    async def _tell(self) -> None:
        """Publish the changes of this replica. Raises ``FleetUnavailable``."""
        while self._own:
            name, is_pinned = next(iter(self._own.items()))
            await self._publish({name: is_pinned})
            if self._own.get(name) is is_pinned:
                del self._own[name]

    async def _publish(self, changes: Mapping[str, bool]) -> None:
        fields = [part for name, pinned in changes.items() for part in (name, int(pinned))]
        message = json.dumps(dict(changes))
        await self._store.run_all(
            ["HSET", self._key, *fields], ["PUBLISH", self._store.key(CHANNEL), message]
        )

    async def _compare(self) -> None:
        """Adopt the pins in Redis, and publish missing ones. Raises ``FleetUnavailable``."""
        self._has_gap = False
        known = _flags(await self._store.run("HGETALL", self._key))
        self._heard = known | self._heard
        lacking = [name for name in self._pins.added() if name not in known]
        if lacking:
            await self._publish(dict.fromkeys(lacking, True))

    def _on_change(self, name: str, is_pinned: bool) -> None:  # noqa: FBT001 - a callback
        self._own[name] = is_pinned
        self._woken.set()

    def _on_gap(self) -> None:
        self._has_gap = True
        self._woken.set()

    def _on_message(self, data: bytes) -> None:
        for name, is_pinned in read_object(data).items():
            if isinstance(is_pinned, bool) and len(self._heard) < MAX_NAMES:
                self._heard[name] = is_pinned
        self._woken.set()


def _flags(answer: Mapping[bytes, bytes] | Iterable[bytes]) -> dict[str, bool]:
    """Return the names in Redis; too many are cut."""
    pairs = list(answer.items()) if isinstance(answer, Mapping) else []
    return {name.decode(errors="replace"): value == b"1" for name, value in pairs[:MAX_NAMES]}
