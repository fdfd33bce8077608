"""Structured logs: lines for people on a terminal, JSON otherwise, one line a request.

Request lines are collected on the hot path and written in bulk from a thread: formatting one costs
more than answering it. Under a flood lines are dropped and counted, never waited for.
"""

import asyncio
import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal, TextIO

import structlog

FLUSH_SECONDS: Final = 0.2
MAX_PENDING: Final = 50_000

Renderer = Callable[[Mapping[str, Any]], str]


def configure(level: str, form: Literal["auto", "console", "json"], stream: TextIO) -> Renderer:
    """Set up logging for this process; return how one event becomes one line."""
    console = form == "console" or (form == "auto" and stream.isatty())
    final: Any = (
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if console
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if console else [_tracebacks()]),
            final,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)

    def render(event: Mapping[str, Any]) -> str:
        line: str = final(None, "info", dict(event))
        return line

    return render


def _tracebacks() -> structlog.processors.ExceptionRenderer:
    """Render tracebacks without the frames' variables: those may be secrets."""
    return structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )


class _Forward(logging.Handler):
    """Hands what libraries log to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record of the standard library's logging."""
        structlog.get_logger(record.name).log(
            record.levelno, record.getMessage(), exc_info=record.exc_info
        )


class RequestLog:
    """Collects request lines; owns the task that writes them."""

    def __init__(
        self,
        render: Renderer,
        stream: TextIO,
        *,
        enabled: bool,
        on_drop: Callable[[], None],
    ) -> None:
        self._render = render
        self._stream = stream
        self._enabled = enabled
        self._on_drop = on_drop
        self._pending: deque[tuple[float, dict[str, Any]]] = deque()
        self._writing = threading.Lock()

    def add(self, event: dict[str, Any]) -> None:
        """Take one request's fields; None values are left out of its line."""
        if not self._enabled:
            return
        if len(self._pending) >= MAX_PENDING:
            self._on_drop()
            return
        self._pending.append((time.time(), event))

    async def write_for_ever(self) -> None:
        """Write what has come, some times a second; once more when cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                if self._pending:
                    await asyncio.to_thread(self._flush_or_drop)
        finally:
            self._flush_or_drop()

    def _flush_or_drop(self) -> None:
        """Flush; lines that cannot be written are counted, and the next ones tried again."""
        with self._writing:
            try:
                self.flush()
            except (OSError, ValueError):
                self._on_drop()

    def flush(self) -> None:
        """Write all pending lines."""
        lines = []
        while self._pending:
            at, event = self._pending.popleft()
            stamp = datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")
            known = {name: value for name, value in event.items() if value is not None}
            lines.append(
                self._render({"event": "request", "level": "info", "timestamp": stamp, **known})
            )
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()


def standard_error() -> TextIO:
    """Return where logs go."""
    return sys.stderr
