"""Structured logs: readable lines on a terminal, else JSON; one line for each request.

The hot path only queues request lines. A thread formats and writes them in batches, because
formatting a line costs more than answering a request. When the queue is full, or its lines cannot
be written, lines are dropped and counted: logging never delays a request.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal, NamedTuple, TextIO

import structlog

from proxy.runtime import request_ids

FLUSH_SECONDS: Final = 0.2
MAX_PENDING: Final = 50_000
NEARLY_FULL: Final = 40_000
"""Number of waiting lines above which request lines may be dropped."""

BATCH: Final = 1000
Level = Literal["debug", "info", "warning", "error"]

_REQUEST: Final = {"event": "request", "level": "info"}
_FAILED_REQUEST: Final = {"event": "request", "level": "warning"}


class Output(NamedTuple):
    """The output of lines, and the structlog processor that renders an event as a line."""

    stream: TextIO
    renderer: Any
    is_json: bool
    """Lines are JSON objects, so that parts of a line can be rendered apart and joined."""

    def render(self, event: Mapping[str, Any]) -> str:
        """Return the line of an event, without a line end."""
        line: str = self.renderer(None, "info", dict(event))
        return line

    def write(self, text: str) -> None:
        """Write and flush. Raises ``OSError`` or ``ValueError``."""
        self.stream.write(text)
        self.stream.flush()


class _Answered(NamedTuple):
    """One request: Unix seconds, the fields that many requests share, and its own three."""

    at: float
    fields: Mapping[str, Any]
    seconds: float
    client: str | None
    request_id: str


def configure(level: str, form: Literal["auto", "console", "json"], stream: TextIO) -> Output:
    """Set up logging for this process; return the output for request lines."""
    is_console = form == "console" or (form == "auto" and stream.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(
            colors=stream.isatty(), exception_formatter=structlog.dev.plain_traceback
        )
        if is_console
        else structlog.processors.JSONRenderer()
    )
    output = Output(stream, renderer, is_json=not is_console)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _with_request_id,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if is_console else [_tracebacks()]),
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _Lines(output),
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=logging.WARNING, force=True)
    return output


def set_level(level: str) -> None:
    """Log only events of ``level`` and above from now on."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(level))


def _tracebacks() -> structlog.processors.ExceptionRenderer:
    """Render tracebacks without local variables, which may hold secrets."""
    return structlog.processors.ExceptionRenderer(
        structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    )


def _with_request_id(
    _logger: object, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Add the id of the request that a task works for."""
    request_id = request_ids.current()
    if request_id is not None:
        event.setdefault("request_id", request_id)
    return event


class _ToStructlog(logging.Handler):
    """Passes the records of libraries to structlog."""

    def emit(self, record: logging.LogRecord) -> None:
        """Log one record of the standard library's logging."""
        structlog.get_logger(record.name).log(
            record.levelno, record.getMessage(), exc_info=record.exc_info
        )


class _Lines:
    """Writes lines. A full disk or a closed pipe must not fail the code that logs."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def msg(self, line: str) -> None:
        with suppress(OSError, ValueError):
            self._output.write(line + "\n")

    debug = info = warning = error = critical = exception = fatal = log = msg


class RequestLog:
    """Queues request lines until ``write_forever`` writes them."""

    def __init__(self, output: Output, *, level: Level, on_drop: Callable[[int], None]) -> None:
        """``level``: requests are logged at ``info``, those with a 5xx status at ``warning``.

        ``on_drop`` gets the number of dropped lines.
        """
        self._output = output
        self.set_level(level)
        self._on_drop = on_drop
        self._pending: deque[_Answered] = deque()
        self._writing = threading.Lock()
        self._is_failing = False

    def set_level(self, level: Level) -> None:
        """Log requests of this level and above from now on."""
        self._logs_all = level in ("debug", "info")
        self._logs_failed = level != "error"

    @property
    def is_complete(self) -> bool:
        """Each request gets a line, and at the moment no line is dropped."""
        return self._logs_all and not self._is_failing and len(self._pending) < NEARLY_FULL

    def add(
        self, fields: Mapping[str, Any], seconds: float, client: str | None, request_id: str
    ) -> None:
        """Queue the line of one request; fields that are None are left out.

        Several requests may share ``fields``, which must not change afterwards.
        """
        if not self._logs_all and not (self._logs_failed and _is_failed(fields)):
            return
        if len(self._pending) >= MAX_PENDING:
            self._on_drop(1)
            return
        self._pending.append(_Answered(time.time(), fields, seconds, client, request_id))

    async def write_forever(self) -> None:
        """Write queued lines every ``FLUSH_SECONDS``, and the rest when cancelled."""
        try:
            while True:
                await asyncio.sleep(FLUSH_SECONDS)
                while self._pending:
                    await asyncio.to_thread(self.flush)
        finally:
            while self._pending:
                self.flush()

    def flush(self) -> None:
        """Write one batch, which is dropped and counted if that fails.

        A larger one would hold the interpreter lock for too long.
        """
        with self._writing:
            if not (lines := self._rendered()):
                return
            try:
                self._output.write("".join(lines))
                self._is_failing = False
            except (OSError, ValueError):
                self._is_failing = True
                self._on_drop(len(lines))

    def _rendered(self) -> list[str]:
        """Remove the next batch from the queue, and return its lines."""
        lines: list[str] = []
        line = _JSONLines(self._output) if self._output.is_json else self._line
        while self._pending and len(lines) < BATCH:
            lines.append(line(self._pending.popleft()) + "\n")
        return lines

    def _line(self, answered: _Answered) -> str:
        at, fields, seconds, client, request_id = answered
        own = {"seconds": round(seconds, 6), "request_id": request_id, "client": client}
        event = _about(fields) | {"timestamp": _timestamp(at)} | _known(fields) | _known(own)
        return self._output.render(event)


class _JSONLines:
    """Renders the lines of one batch; fields that requests share are rendered only once."""

    def __init__(self, output: Output) -> None:
        self._render = output.render
        self._shared: dict[int, tuple[Mapping[str, Any], str]] = {}
        self._clients: dict[str | None, str] = {}
        self._second, self._timestamp = -1, ""

    def __call__(self, answered: _Answered) -> str:
        """Return the line of one request."""
        at, fields, seconds, client, request_id = answered
        second = int(at)
        if second != self._second:
            self._second, self._timestamp = second, _timestamp(second).removesuffix("Z")
        shared = self._shared.get(id(fields))
        if shared is None:  # keeping the mapping keeps its id from being reused
            text = self._render(_about(fields) | _known(fields))[:-1]
            shared = self._shared[id(fields)] = fields, text
        end = self._clients.get(client)
        if end is None:
            own = self._render(_known({"client": client}))[1:]
            end = self._clients[client] = own if client is None else f", {own}"
        timestamp = f"{self._timestamp}.{int((at - second) * 1e6):06d}Z"
        own = f'"timestamp": "{timestamp}", "seconds": {seconds:.6f}, "request_id": "{request_id}"'
        return f"{shared[1]}, {own}{end}"


def _is_failed(fields: Mapping[str, Any]) -> bool:
    """Return True for a request that was answered with 5xx."""
    status = fields.get("status")
    return status is not None and int(status) >= 500


def _about(fields: Mapping[str, Any]) -> dict[str, Any]:
    return _FAILED_REQUEST if _is_failed(fields) else _REQUEST


def _timestamp(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat().replace("+00:00", "Z")


def _known(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
