"""The running audit log: writes events to ``access.audit_file``, or else to the ordinary log."""

import asyncio
from contextlib import suppress
from typing import Final

from proxy.access.audit import AuditEvent, Event, Recurrence, Verdict, entry, line
from proxy.core.errors import ConfigError
from proxy.runtime.append_file import AppendFile
from proxy.runtime.line_writer import LineWriter, Sink
from proxy.runtime.logs import Output
from proxy.runtime.metrics import Metrics
from proxy.settings.access import Access

REASON: Final = "audit log"
"""The name under which ``/-/readyz`` reports that the audit log cannot be written."""


class _File(AppendFile):
    """The file of ``access.audit_file``."""

    def render(self, item: AuditEvent | Recurrence) -> bytes:
        """Return the event as a line of JSON."""
        return line(item)


class _OrdinaryLog:
    """The ordinary log; its owner opens and closes it."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def open(self) -> None:
        """Do nothing."""

    def render(self, item: AuditEvent | Recurrence) -> bytes:
        """Return the event as a line of the log, whatever the log's level is."""
        if isinstance(item, Recurrence):
            if self._output.is_json:
                return item.text("timestamp", entry).encode("ascii") + b"\n"
            item = item.event()
        return self._output.render(entry(item)).encode("utf-8", "backslashreplace") + b"\n"

    def write(self, lines: list[bytes]) -> int:
        """Write all lines."""
        self._output.write(b"".join(lines).decode())
        return len(lines)

    def close(self) -> None:
        """Do nothing."""


class Audit:
    """Records events while access is configured, from ``start`` until ``close``."""

    def __init__(self, access: Access, output: Output, metrics: Metrics) -> None:
        self._access = access
        self._ordinary_log = _OrdinaryLog(output)
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self.is_on = _is_wanted(access)
        self.has_file = access.audit_file is not None
        self._lines: Final = LineWriter(
            self._sink(),
            lost=lambda count: AuditEvent(event=Event.LOST, outcome=Verdict.FAILED, count=count),
            on_lost=self._count_lost,
            on_error=self._report,
        )

    def start(self) -> None:
        """Open the file. Raises ``ConfigError``."""
        try:
            self._lines.start()
        except OSError as error:
            raise ConfigError(
                f"access.audit_file: {self._access.audit_file} cannot be written: {error.strerror}"
            ) from None

    def record(self, event: AuditEvent | Recurrence) -> None:
        """Record an event, after all that were recorded before it. Never waits, never fails."""
        if self.is_on:
            self._lines.add(event)

    @property
    def is_nearly_full(self) -> bool:
        """Await ``wait_for_room`` before the next request is answered."""
        return self._lines.is_nearly_full

    async def wait_for_room(self) -> None:
        """Wait for room for more events, for a moment."""
        await self._lines.wait_for_room()

    def use(self, access: Access) -> None:
        """Use the file of these settings from now on."""
        self._access = access
        self.is_on = _is_wanted(access)
        self.has_file = access.audit_file is not None
        self.reopen()

    def reopen(self) -> None:
        """Open the file again, because it may have been renamed."""
        self._lines.use(self._sink())

    async def close(self) -> None:
        """Write the recorded events; those that the file cannot store go to the ordinary log."""
        await self._lines.close(self._ordinary_log)

    def _sink(self) -> Sink[AuditEvent | Recurrence]:
        file = self._access.audit_file
        return self._ordinary_log if file is None else _File(file, self._access.audit_max_size)

    def _count_lost(self) -> None:
        self._metrics.cache.audit_lost_lines += 1

    def _report(self, reason: str | None) -> None:
        """Report from the writer's thread whether the file can be written."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._reported, reason)

    def _reported(self, reason: str | None) -> None:
        if reason is None:
            self._metrics.readiness.clear(REASON)
        else:
            self._metrics.cache.audit_failures += 1
            self._metrics.readiness.report(REASON, f"cannot be written: {reason}")


def _is_wanted(access: Access) -> bool:
    return access.is_configured or access.audit_file is not None
