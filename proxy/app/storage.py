"""Opens the cache directory: the store, the index, and their maintenance."""

import os
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import Final

from proxy.app.bucket import SecondTier
from proxy.content.content import Content
from proxy.content.eviction import Evictor, Quota
from proxy.content.in_use import Feeds
from proxy.content.local_storage import LocalStorage
from proxy.content.pins import Pins
from proxy.core.errors import ConfigError, RegistryError
from proxy.core.records import Clock
from proxy.core.routing import Router
from proxy.index.expiring import ExpiringRows
from proxy.index.generations import Generations
from proxy.index.sqlite import SqliteIndex
from proxy.runtime.metrics import CacheCounters, Metrics
from proxy.runtime.supervisor import Supervisor
from proxy.services.oci_index import Layout, pins_named
from proxy.settings import Settings
from proxy.settings import Storage as StorageSettings
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskStore

INDEX_LEAST: Final = 16 * 1024 * 1024
INDEX_SHARE: Final = 0.05
"""The index may grow to this share of ``max_size``, and to as many bytes at the least."""


@dataclass(frozen=True, slots=True)
class Storage:
    """The content of the cache, and the parts that maintain it.

    ``bucket`` is the second tier, if there is one.
    """

    directory: Directory
    clock: Clock
    counters: CacheCounters
    index: SqliteIndex
    expiring: ExpiringRows
    pins: Pins
    feeds: Feeds
    content: Content
    layout: Layout
    local_storage: LocalStorage
    bucket: SecondTier | None = None


async def open_storage(
    stack: AsyncExitStack,
    settings: Settings,
    router: Router,
    metrics: Metrics,
    clock: Clock,
) -> Storage:
    """Lock the directory and open all parts; ``stack`` closes them. Raises ``ConfigError``."""
    configured = settings.storage
    directory = Directory(configured.path, file_mode=int(configured.file_mode, 8))
    stack.callback(directory.close)
    store = DiskStore(directory, metrics.cache.count_storage_error)
    rows = configured.path / "index"
    counters, supervisor = metrics.cache, Supervisor(metrics.tasks, metrics.readiness)
    quota = _quota(configured, directory)
    index = SqliteIndex(
        rows,
        clock=clock,
        on_error=counters.count_storage_error,
        supervisor=supervisor,
        max_bytes=max(INDEX_LEAST, INDEX_SHARE * quota.max_size),
    )
    if settings.processes > 1:
        index.generations = Generations()
        stack.callback(index.generations.close)
    await stack.enter_async_context(index)
    expiring = ExpiringRows(rows / "expiring", on_error=counters.count_storage_error)
    await stack.enter_async_context(expiring)
    feeds = Feeds(index, router.parse_image, clock, configured.in_use_file)
    pinned = int(quota.max_size * quota.low_mark)
    try:
        pins = Pins(index, settings.pins, parse=router.parse_pin, limit=lambda: pinned, feeds=feeds)
    except RegistryError as error:
        raise ConfigError(f"pins: {error.message}") from None
    await feeds.load()
    stack.push_async_callback(feeds.save)
    await pins.load(lambda: pins_named(directory))
    evictor = Evictor(index, store, quota, counters=counters, protected=pins.protected)
    content = Content(store, index, evictor, counters, clock)
    stack.push_async_callback(content.reconciler.close)
    await content.reconciler.begin()
    layout = Layout(content, directory, pins.added)
    local_storage = LocalStorage(store, index, counters, clock)
    return Storage(
        directory, clock, counters, index, expiring, pins, feeds, content, layout, local_storage
    )


def _quota(configured: StorageSettings, directory: Directory) -> Quota:
    try:
        status = os.statvfs(directory.fd)
    except OSError as error:
        raise ConfigError(
            f"storage.path: {directory.root} cannot be measured: {error.strerror}"
        ) from None
    total = status.f_blocks * status.f_frsize
    return Quota(
        configured.max_size.of(total),
        configured.high_mark,
        configured.low_mark,
        configured.min_free.of(total),
        configured.max_age,
        configured.unproven_share,
    )
