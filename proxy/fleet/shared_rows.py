"""Rows that all replicas share: what one of them changes, the others follow.

Redis has a hash of the rows by name, and a channel that says which have changed. If Redis loses
them, every replica publishes its own rows again.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import structlog

from proxy.core.errors import FleetUnavailable, StorageError
from proxy.fleet.store import Store, Subscription

MAX_ROWS: Final = 10_000
RETRY_SECONDS: Final = 1.0
_BATCH: Final = 250

log = structlog.get_logger(__name__)


class LocalRows(Protocol):
    """The rows of this replica. ``channel`` names the hash too."""

    @property
    def channel(self) -> str:
        """What the rows are about."""

    @property
    def absent(self) -> bytes | None:
        """What takes the place of a row that was removed here; None: it expires by itself."""

    def listen(self, changed: Callable[[str], None]) -> None:
        """Call ``changed`` with the name of each row that changes here."""

    def rows(self) -> Mapping[str, bytes]:
        """Return the rows by name."""

    def message(self, name: str, value: bytes) -> bytes:
        """Return what the other replicas hear of a row."""

    def names_in(self, message: bytes) -> Iterable[str]:
        """Return the names of the rows that a message is about."""

    def has_ended(self, value: bytes) -> bool:
        """Return True for a row to be removed from Redis."""

    async def follow(self, rows: Mapping[str, bytes]) -> None:
        """Take rows over as other replicas have them. Raises ``StorageError``."""


class SharedRows:
    """Exchanges rows with the other replicas. Run ``run`` as a task."""

    def __init__(self, store: Store, local: LocalRows) -> None:
        self._store = store
        self._local = local
        self._key = store.key(local.channel)
        self._own: dict[str, None] = {}
        self._reported: dict[str, None] = {}
        self._has_gap = False
        self._woken = asyncio.Event()
        local.listen(self._on_change)
        store.subscribe(local.channel, Subscription(self._on_message, self._on_gap))

    async def run(self) -> None:
        """Publish and follow changes, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._publish_changes()
                if self._has_gap:
                    await self._compare()
                await self._listen()
            except (FleetUnavailable, StorageError) as error:
                reason = type(error).__name__
                log.debug("changes are not shared yet", of=self._local.channel, reason=reason)
                await asyncio.sleep(RETRY_SECONDS)
                self._on_gap()

    async def _publish_changes(self) -> None:
        """Publish what was changed here. Raises ``FleetUnavailable``."""
        while self._own:
            name, _ = self._own.popitem()
            value = self._local.rows().get(name, self._local.absent)
            if value is None:
                continue
            try:
                await self._publish(name, value)
            except FleetUnavailable:
                self._own[name] = None
                raise

    async def _publish(self, name: str, value: bytes) -> None:
        await self._store.run_all(
            ["HSET", self._key, name, value],
            ["PUBLISH", self._key, self._local.message(name, value)],
        )

    async def _compare(self) -> None:
        """Follow what Redis knows, and publish what it lacks.

        Raises ``FleetUnavailable``, ``StorageError``.
        """
        self._has_gap = False
        known = _rows(await self._store.run("HGETALL", self._key))
        ended = [name for name, value in known.items() if self._local.has_ended(value)]
        if ended:
            await self._store.run("HDEL", self._key, *ended)
        await self._follow({name: known[name] for name in known.keys() - ended})
        for name, value in self._local.rows().items():
            if name not in known:
                await self._publish(name, value)

    async def _listen(self) -> None:
        """Follow the rows that others have changed. Raises as ``_compare``."""
        while self._reported:
            names = [self._reported.popitem()[0] for _ in range(min(_BATCH, len(self._reported)))]
            values = await self._store.run("HMGET", self._key, *names)
            known = zip(names, values, strict=True)
            await self._follow({name: value for name, value in known if value is not None})

    async def _follow(self, rows: Mapping[str, bytes]) -> None:
        """Follow rows, but not those that have changed here meanwhile."""
        await self._local.follow(
            {name: value for name, value in rows.items() if name not in self._own}
        )

    def _on_change(self, name: str) -> None:
        self._own[name] = None
        self._woken.set()

    def _on_gap(self) -> None:
        self._has_gap = True
        self._woken.set()

    def _on_message(self, message: bytes) -> None:
        for name in self._local.names_in(message):
            if len(self._reported) < MAX_ROWS:
                self._reported[name] = None
        self._woken.set()


def _rows(answer: Any) -> dict[str, bytes]:
    """Return the rows in Redis by name, at most ``MAX_ROWS``."""
    pairs = [*answer.items()] if isinstance(answer, Mapping) else []
    return {name.decode(errors="replace"): value for name, value in pairs[:MAX_ROWS]}
