"""Reports of a worker to the main process: uses, pulls, counts and log lines, in batches."""

import asyncio
import json
import os
import threading
import time
from collections import deque
from io import StringIO
from pathlib import Path
from typing import Any, Final

from proxy.access.limits import ClientLimits
from proxy.app.workers.channel import Channel
from proxy.core.names import Digest, Kind, Target
from proxy.runtime import deltas
from proxy.runtime.events import EventKind, Fact
from proxy.runtime.metrics import Metrics

LINES: Final = b"l"
COUNTS: Final = b"c"
"""The first byte of a frame: lines of the log follow, or a report in JSON."""

MAX_USES: Final = 50_000
"""Maximum number of uses in one report; while none can be sent, the oldest are dropped."""

MAX_TEXT: Final = 16 * 1024 * 1024
"""Characters of log lines that wait."""

MAX_PULLS: Final = 5000
"""Maximum number of pulls in one report; the oldest are dropped."""

_TEXT_EACH: Final = 1024 * 1024

Use = tuple[Kind, Target, Digest]


class Uses:
    """The content that was served, the last use last."""

    def __init__(self) -> None:
        self._uses: dict[Use, None] = {}

    def add(self, kind: Kind, target: Target, digest: Digest) -> None:
        """Note a use."""
        use = kind, target, digest
        self._uses.pop(use, None)
        self._uses[use] = None
        if len(self._uses) > MAX_USES:
            del self._uses[next(iter(self._uses))]

    def drain(self) -> list[list[str]]:
        """Return the uses as JSON values, and forget them."""
        uses, self._uses = self._uses, {}
        return [[kind.name, *target, digest] for kind, target, digest in uses]


class Pulls:
    """The answered pulls, while the main process asks for them."""

    def __init__(self, *, are_wanted: bool) -> None:
        self.are_wanted = are_wanted
        self._pulls: deque[list[Any]] = deque(maxlen=MAX_PULLS)

    def wanted(self, kind: EventKind) -> bool:
        """Return True if events of this kind are reported."""
        return self.are_wanted and kind is EventKind.PULL

    def emit(self, kind: EventKind, subject: str, /, **data: Fact) -> None:
        """Record a pull; the main process emits the other kinds."""
        if self.wanted(kind):
            self._pulls.append([time.time(), subject, data])

    def drain(self) -> list[list[Any]]:
        """Return the pulls as JSON values, and forget them."""
        taken = [*self._pulls]
        self._pulls.clear()
        return taken


class LogLines(StringIO):
    """The stream of a worker's log, written by any thread."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal
        self._texts: list[str] = []
        self._size = 0
        self._lock = threading.Lock()

    def isatty(self) -> bool:
        """Return True if the main process writes to a terminal."""
        return self._is_terminal

    def write(self, text: str, /) -> int:
        """Keep some lines. Raises ``OSError`` if too many wait."""
        with self._lock:
            if self._size + len(text) > MAX_TEXT:
                raise OSError("the main process takes no lines")
            self._texts.append(text)
            self._size += len(text)
        return len(text)

    def drain(self) -> str:
        """Remove and return some of the lines, in whole writes."""
        with self._lock:
            size = count = 0
            while count < len(self._texts) and size < _TEXT_EACH:
                size += len(self._texts[count])
                count += 1
            taken, self._texts = self._texts[:count], self._texts[count:]
            self._size -= size
        return "".join(taken)


class Reports:
    """Collects reports, and sends them."""

    def __init__(
        self,
        channel: Channel,
        metrics: Metrics,
        limits: ClientLimits,
        lines: LogLines,
        *,
        reports_pulls: bool,
    ) -> None:
        self.uses: Final = Uses()
        self.pulls: Final = Pulls(are_wanted=reports_pulls)
        self.relayed = 0
        """Requests that were relayed and not reported yet."""
        self.responses = 0
        """Responses in progress."""
        self._channel = channel
        self._metrics = metrics
        self._limits = limits
        self._lines = lines
        self._cpu = 0.0
        self._sending = asyncio.Lock()

    async def send(self) -> None:
        """Report everything until now. Raises ``OSError``."""
        async with self._sending:
            while text := self._lines.drain():
                await self._channel.send(LINES + text.encode(errors="backslashreplace"))
            await self._channel.send(COUNTS + json.dumps(self._report()).encode())

    def _report(self) -> dict[str, Any]:
        cpu = time.process_time()
        self._cpu, spent = cpu, cpu - self._cpu
        relayed, self.relayed = self.relayed, 0
        return {
            "uses": self.uses.drain(),
            "pulls": self.pulls.drain(),
            "counts": deltas.drain(self._metrics),
            "clients": self._limits.drain(),
            "relayed": relayed,
            "responses": self.responses,
            "cpu_seconds": spent,
            "memory_bytes": _memory(),
        }


def _memory() -> int:
    """Return the resident bytes of this process that it shares with no other."""
    try:
        _, resident, shared, *_ = map(int, Path("/proc/self/statm").read_text().split())
    except (OSError, ValueError):
        return 0
    return (resident - shared) * os.sysconf("SC_PAGE_SIZE")
