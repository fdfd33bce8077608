"""Shares reports of images in use, so that all replicas protect these images from eviction.

Redis has a hash with a row for each source. If it is lost, every replica publishes its reports
again. A file of images in use applies only to its own replica.
"""

import asyncio
import json
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Protocol

import structlog

from proxy.core.errors import FleetUnavailable
from proxy.core.tolerant_json import as_list
from proxy.fleet.store import Store, Subscription

CHANNEL: Final = "in-use"
MAX_SOURCES: Final = 10_000
MAX_NAME: Final = 1000
RETRY_SECONDS: Final = 1.0

log = structlog.get_logger(__name__)

Row = list[Any]
"""Source, names of images, how many of them were named, and when it expires (Unix seconds)."""


class LocalFeeds(Protocol):
    """The reports that this replica knows."""

    @property
    def on_report(self) -> list[Callable[[str], None]]:
        """Called with the source of each report to this replica."""

    def rows(self) -> dict[str, Row]:
        """Return the reports by source, without those that have expired and those of files."""

    def follow(self, rows: Iterable[object]) -> None:
        """Adopt reports to other replicas. Malformed rows are ignored."""


class SharedFeeds:
    """The reports of all replicas. Run ``run`` as a task."""

    def __init__(self, store: Store, feeds: LocalFeeds) -> None:
        self._store = store
        self._feeds = feeds
        self._key = store.key(CHANNEL)
        self._own: dict[str, None] = {}
        self._heard: dict[str, None] = {}
        self._has_gap = False
        self._woken = asyncio.Event()
        feeds.on_report.append(self._on_report)
        store.subscribe(CHANNEL, Subscription(self._on_message, self._on_gap))

    async def run(self) -> None:
        """Exchange reports with the other replicas, until cancelled."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            try:
                await self._tell()
                if self._has_gap:
                    await self._compare()
                while self._heard:
                    source = next(iter(self._heard))
                    self._feeds.follow([_row(await self._store.run("HGET", self._key, source))])
                    self._heard.pop(source, None)
            except FleetUnavailable as error:
                log.debug("images in use are not shared yet", reason=type(error).__name__)
                await asyncio.sleep(RETRY_SECONDS)
                self._on_gap()

    async def _tell(self) -> None:
        """Publish the reports to this replica. Raises ``FleetUnavailable``."""
        while self._own:
            source = next(iter(self._own))
            row = self._feeds.rows().get(source)
            del self._own[source]
            if row is None:
                continue
            try:
                await self._publish(source, row)
            except FleetUnavailable:
                self._own[source] = None
                raise

    async def _publish(self, source: str, row: Row) -> None:
        await self._store.run_all(
            ["HSET", self._key, source, json.dumps(row)],
            ["PUBLISH", self._store.key(CHANNEL), source],
        )

    async def _compare(self) -> None:
        """Adopt the reports in Redis, and publish missing ones. Raises ``FleetUnavailable``."""
        self._has_gap = False
        answer = await self._store.run("HGETALL", self._key)
        known = _rows(answer)
        ended = [source for source, row in known.items() if _has_expired(row)]
        if ended:
            await self._store.run("HDEL", self._key, *ended)
        self._feeds.follow(row for source, row in known.items() if source not in ended)
        for source, row in self._feeds.rows().items():
            if source not in known:
                await self._publish(source, row)

    def _on_report(self, source: str) -> None:
        self._own[source] = None
        self._woken.set()

    def _on_gap(self) -> None:
        self._has_gap = True
        self._woken.set()

    def _on_message(self, data: bytes) -> None:
        if len(self._heard) < MAX_SOURCES and len(data) <= MAX_NAME:
            self._heard[data.decode(errors="replace")] = None
        self._woken.set()


def _row(value: object) -> Row:
    """Return a row from Redis; [] for a malformed one."""
    try:
        return as_list(json.loads(value)) if isinstance(value, bytes) else []
    except (ValueError, RecursionError):
        return []


def _rows(answer: object) -> dict[str, Row]:
    """Return the rows in Redis by source, at most ``MAX_SOURCES``."""
    pairs = [*answer.items()] if isinstance(answer, Mapping) else []
    return {name.decode(errors="replace"): _row(value) for name, value in pairs[:MAX_SOURCES]}


def _has_expired(row: Row) -> bool:
    ends = row[-1] if row else 0
    return isinstance(ends, int | float) and ends <= time.time()
