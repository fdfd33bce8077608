"""Writes lines that must not be lost silently, in order, in one thread.

Unlike request lines, which are dropped under load, these are kept while their file cannot be
written, and written later. The queue is bounded: callers wait for a moment if it is nearly full.
Lines that do not fit are counted, and the log itself records how many are missing, and where.
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar

import structlog

MAX_PENDING: Final = 50_000
"""Maximum number of queued lines."""

NEARLY_FULL: Final = 0.8
"""Share of the queue above which callers wait."""

ROOM_SECONDS: Final = 2.0
"""Maximum time that they wait."""

BATCH: Final = 500
COLLECT_SECONDS: Final = 0.05
"""Time for which lines are collected: waking the thread for each line would slow the loop."""

RETRY_SECONDS: Final = 1.0
REPEAT_SECONDS: Final = 60.0
"""Interval at which the log repeats that lines cannot be written."""

CLOSE_SECONDS: Final = 5.0
"""Time that ``close`` waits for a file system that does not answer."""

Item = TypeVar("Item")
Item_contra = TypeVar("Item_contra", contravariant=True)
log = structlog.get_logger(__name__)


class Sink(Protocol[Item_contra]):
    """The output of lines. All methods except ``render`` block, and run in one thread."""

    def open(self) -> None:
        """Open it. Raises ``OSError``."""

    def render(self, item: Item_contra) -> bytes:
        """Return an item's line, with its line end."""

    def write(self, lines: list[bytes]) -> int:
        """Write whole lines; return how many could be written. Raises ``OSError`` if none."""

    def close(self) -> None:
        """Close it."""


class LineWriter(Generic[Item]):
    """Lines on their way to ``sink``.

    ``lost`` creates an item with the number of missing lines. ``on_error`` is called in the
    thread, with the reason for each failed attempt, and with None once writing works again.
    """

    def __init__(
        self,
        sink: Sink[Item],
        *,
        lost: Callable[[int], Item],
        on_lost: Callable[[], None],
        on_error: Callable[[str | None], None],
    ) -> None:
        self._sink = sink
        self._next: Sink[Item] | None = None
        self._lost_item = lost
        self._on_lost = on_lost
        self._on_error = on_error
        self._pending: deque[Item] = deque()
        self._missing = 0
        self._problem: str | None = None
        self._logged = 0.0
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="line writer", daemon=True)

    def start(self) -> None:
        """Open the sink and start the thread. Raises ``OSError``."""
        self._sink.open()
        self._thread.start()

    def add(self, item: Item) -> None:
        """Queue an item. Only one thread may call this."""
        if len(self._pending) >= MAX_PENDING:
            self._missing += 1
            self._on_lost()
            return
        self._mention_missing()
        self._pending.append(item)
        if not self._wake.is_set():
            self._wake.set()

    @property
    def is_nearly_full(self) -> bool:
        """Callers should wait for room before they cause more items."""
        return len(self._pending) >= MAX_PENDING * NEARLY_FULL

    async def wait_for_room(self) -> None:
        """Wait for room, for a moment; not at all while nothing can be written anyway."""
        for _ in range(int(ROOM_SECONDS / COLLECT_SECONDS)):
            if not self.is_nearly_full or self._problem is not None:
                return
            await asyncio.sleep(COLLECT_SECONDS)

    def use(self, sink: Sink[Item]) -> None:
        """Write to another sink from now on, which may be the same file, opened again."""
        self._next = sink
        self._wake.set()

    async def close(self, last: Sink[Item]) -> None:
        """Write the queue, and stop; lines that cannot be written go to ``last``."""
        self._mention_missing()
        self._closing.set()
        self._wake.set()
        await asyncio.to_thread(self._thread.join, CLOSE_SECONDS)
        if not self._pending:
            return
        log.error("lines were not written", lines=len(self._pending), reason=self._problem)
        for item in list(self._pending):
            last.write([last.render(item)])

    def _mention_missing(self) -> None:
        if self._missing:
            self._pending.append(self._lost_item(self._missing))
            self._missing = 0

    def _run(self) -> None:
        while not self._closing.is_set():
            self._wake.wait()
            self._closing.wait(COLLECT_SECONDS)
            self._wake.clear()
            if not self._write_all():
                self._closing.wait(RETRY_SECONDS)
                self._wake.set()
        if self._write_all():
            self._sink.close()

    def _write_all(self) -> bool:
        """Write what is queued; return False if that failed."""
        try:
            self._change_sink()
            while self._pending:
                self._write_batch()
        except Exception as error:  # the thread must never end: lines would be lost silently
            self._report(getattr(error, "strerror", None) or str(error))
            return False
        if self._problem is not None:
            log.warning("lines are written again")
            self._problem = None
            self._on_error(None)
        return True

    def _change_sink(self) -> None:
        """Open the next sink; until that works, the old one is used where it can be."""
        if (sink := self._next) is None:
            return
        try:
            sink.open()
        except OSError:
            while self._pending:
                self._write_batch()
            raise
        self._sink.close()
        self._sink = sink
        if self._next is sink:
            self._next = None
        else:  # another one came meanwhile
            self._wake.set()

    def _write_batch(self) -> None:
        """Write a few items, and remove those that were written."""
        batch = [self._pending[place] for place in range(min(BATCH, len(self._pending)))]
        written = self._sink.write([self._sink.render(item) for item in batch])
        for _ in range(written):
            self._pending.popleft()

    def _report(self, reason: str) -> None:
        now = time.monotonic()
        if reason != self._problem or now - self._logged >= REPEAT_SECONDS:
            log.error("lines cannot be written", reason=reason, waiting=len(self._pending))
            self._logged = now
        self._problem = reason
        self._on_error(reason)
