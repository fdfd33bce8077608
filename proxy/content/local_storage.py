"""The parts of this machine's storage that the background work uses."""

from dataclasses import dataclass

from proxy.core.records import Clock
from proxy.index import Index
from proxy.runtime.metrics import CacheCounters
from proxy.storage.disk import DiskStore


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """Files, facts and counters."""

    store: DiskStore
    index: Index
    counters: CacheCounters
    clock: Clock
