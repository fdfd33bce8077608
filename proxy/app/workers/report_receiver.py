"""Adds the reports of workers, so that the counts of the main process cover all processes."""

import json
from contextlib import suppress
from functools import partial
from typing import Any, Final

from proxy.access.limits import ClientLimits
from proxy.app.engine import Engine
from proxy.app.workers.reports import COUNTS, LINES
from proxy.core.names import Digest, Kind, Repo, Target
from proxy.runtime import deltas
from proxy.runtime.events import EventKind
from proxy.runtime.executors import Pool, in_thread
from proxy.runtime.logs import Output
from proxy.runtime.part_counters import WorkerCounters


class ReportReceiver:
    """Adds reports to the counters, the index, the events and the log."""

    def __init__(self, engine: Engine, limits: ClientLimits, output: Output) -> None:
        self._metrics = engine.metrics
        self._events = engine.events
        self._limits = limits
        self._content = engine.storage.content
        self._cache = engine.cache
        self.output: Final = output
        self._responses: dict[str, int] = {}

    def responses(self) -> int:
        """Return how many responses of workers are in progress, as of their last reports."""
        return sum(self._responses.values())

    async def add(self, worker: str, frame: bytes) -> None:
        """Add one report. Raises ``ValueError`` or ``LookupError`` if it is malformed."""
        if frame.startswith(LINES):
            text = frame[len(LINES) :].decode(errors="backslashreplace")
            with suppress(OSError, ValueError):  # a full disk or a closed pipe
                await in_thread(partial(self.output.write, text), Pool.UPKEEP)
            return
        self._add(worker, json.loads(frame[len(COUNTS) :]))

    def forget(self, worker: str) -> None:
        """Forget the responses of a worker that has ended."""
        self._responses.pop(worker, None)

    def _add(self, worker: str, report: dict[str, Any]) -> None:
        for kind, upstream, repo, digest in report["uses"]:
            self._used(Kind[kind], Target(upstream, Repo(repo)), Digest(digest))
        for at, subject, data in report["pulls"]:
            self._events.emit_of(float(at), EventKind.PULL, str(subject), dict(data))
        deltas.add(self._metrics, report["counts"])
        self._limits.add(report["clients"])
        self._responses[worker] = report["responses"]
        counters = self._metrics.workers.setdefault(worker, WorkerCounters())
        for counts in report["counts"]["upstreams"].values():
            counters.requests += sum(counts.get("outcomes", {}).values())
            counters.bytes += counts.get("bytes_to_clients", 0)
        counters.relayed += report["relayed"]
        counters.cpu_seconds += report["cpu_seconds"]
        counters.memory = report["memory_bytes"]

    def _used(self, kind: Kind, target: Target, digest: Digest) -> None:
        self._content.touch(digest)
        if kind is Kind.BLOB:
            self._cache.blobs.requested(target, digest)
        else:
            self._cache.manifests.note_sizes(target, digest)
