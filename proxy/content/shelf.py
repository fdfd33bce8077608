"""What the work behind the cache needs of this machine's storage."""

from dataclasses import dataclass

from proxy.core.records import Clock
from proxy.index import Index
from proxy.runtime.metrics import CacheCounters
from proxy.storage.disk import DiskStore


@dataclass(frozen=True, slots=True)
class Shelf:
    """The files and the facts, and what counts what happens to them."""

    store: DiskStore
    index: Index
    counters: CacheCounters
    clock: Clock
