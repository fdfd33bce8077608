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
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TextIO

import structlog

FLUSH_SECONDS: Final = 0.2
MAX_PENDING: Final = 50_000
BATCH: Final = 1000
Level = Literal["debug", "info", "warning", "error"]

_REQUEST: Final = {"event": "request", "level": "info"}
_FAILED_REQUEST: Final = {"event": "request", "level": "warning"}


class Renderer:
    """How one event becomes one line."""

    def __init__(self, final: Any, *, is_json: bool) -> None:
        self._final = final
        self.is_json = is_json
        """Lines are JSON objects, whose parts may be rendered apart and joined."""

    def __call__(self, event: Mapping[str, Any]) -> str:
        """Return the line of an event, without its end."""
        line: str = self._final(None, "info", dict(event))
        return line


class _Answered(NamedTuple):
    """One answered request: Unix seconds, what many requests share, and its own."""

    at: float
    fields: Mapping[str, Any]
    seconds: float
    client: str | None


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
        logger_factory=lambda *_: _Lines(stream),
    )
    logging.basicConfig(handlers=[_Forward()], level=logging.WARNING, force=True)
    return Renderer(final, is_json=not console)


def set_level(level: str) -> None:
    """Log events of ``level`` and above from now on."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


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


class _Lines:
    """Writes lines; whoever logs must not fail because nobody takes what is said."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._stream.write(line + "\n")
            self._stream.flush()

    debug = info = warning = error = critical = exception = fatal = log = msg


class RequestLog:
    """Collects request lines; owns the task that writes them."""

    def __init__(
        self,
        render: Renderer,
        stream: TextIO,
        *,
        level: Level,
        on_drop: Callable[[], None],
    ) -> None:
        """``level``: what is logged. Requests are ``info``, those that end in 5xx ``warning``."""
        self._render = render
        self._stream = stream
        self.set_level(level)
        self._on_drop = on_drop
        self._pending: deque[_Answered] = deque()
        self._writing = threading.Lock()

    def set_level(self, level: Level) -> None:
        """Log requests from this level on."""
        self._takes_all = level in ("debug", "info")
        self._takes_failed = level != "error"

    def add(self, fields: Mapping[str, Any], seconds: float, client: str | None) -> None:
        """Take one answered request; fields that are None are left out of its line.

        The same mapping may come with many requests, and must not change between.
        """
        if not self._takes_all and not (self._takes_failed and _is_failed(fields)):
            return
        if len(self._pending) >= MAX_PENDING:
            self._on_drop()
            return
        self._pending.append(_Answered(time.time(), fields, seconds, client))

    async def write_for_ever(self) -> None:
        """Write what has come, some times a second; once more when cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                while self._pending:
                    await asyncio.to_thread(self._flush_or_drop)
        finally:
            while self._pending:
                self._flush_or_drop()

    def _flush_or_drop(self) -> None:
        """Flush; lines that cannot be written are counted, and the next ones tried again."""
        with self._writing:
            try:
                self.flush()
            except (OSError, ValueError):
                self._on_drop()

    def flush(self) -> None:
        """Write pending lines, as many as do not keep the loop's thread from its turn for long."""
        lines: list[str] = []
        line = _Joined(self._render) if self._render.is_json else self._line
        while self._pending and len(lines) < BATCH:
            lines.append(line(self._pending.popleft()))
        if lines:
            self._stream.write("\n".join(lines) + "\n")
            self._stream.flush()

    def _line(self, answered: _Answered) -> str:
        own = {"seconds": round(answered.seconds, 6), "client": answered.client}
        stamp = _stamp(answered.at)
        about = _about(answered.fields)
        return self._render(about | {"timestamp": stamp} | _known(answered.fields) | _known(own))


class _Joined:
    """Makes JSON lines; what requests share is rendered once for all of a flush."""

    def __init__(self, render: Renderer) -> None:
        self._render = render
        self._shared: dict[int, tuple[Mapping[str, Any], str]] = {}
        self._clients: dict[str | None, str] = {}
        self._second, self._stamp = -1, ""

    def __call__(self, answered: _Answered) -> str:
        """Return the line of one request."""
        at, fields, seconds, client = answered
        second = int(at)
        if second != self._second:
            self._second, self._stamp = second, _stamp(second).removesuffix("Z")
        shared = self._shared.get(id(fields))
        if shared is None:  # the mapping is kept with its text, so that its id stays its own
            text = self._render(_about(fields) | _known(fields))[:-1]
            shared = self._shared[id(fields)] = fields, text
        end = self._clients.get(client)
        if end is None:
            own = self._render(_known({"client": client}))[1:]
            end = self._clients[client] = own if client is None else f", {own}"
        stamp = f"{self._stamp}.{int((at - second) * 1e6):06d}Z"
        return f'{shared[1]}, "timestamp": "{stamp}", "seconds": {seconds:.6f}{end}'


def _is_failed(fields: Mapping[str, Any]) -> bool:
    """Return True for a request that ends in 5xx."""
    status = fields.get("status")
    return status is not None and int(status) >= 500


def _about(fields: Mapping[str, Any]) -> dict[str, Any]:
    return _FAILED_REQUEST if _is_failed(fields) else _REQUEST


def _stamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def standard_error() -> TextIO:
    """Return where logs go."""
    return sys.stderr
