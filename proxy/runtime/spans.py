"""Spans of a trace: the interface to a tracing library, and the current span of each task.

A span is current for its task and for tasks that it starts, so the layers between a request and its
effects need not pass it on. Without tracing there is no current span, and this module does nothing.
"""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from enum import Enum
from typing import Protocol

Attribute = str | int | float | bool
Attributes = Mapping[str, Attribute | None]
"""None: the attribute is left out."""


class Kind(Enum):
    """The kind of a span (OpenTelemetry, "SpanKind")."""

    SERVER = "server"
    CLIENT = "client"
    INTERNAL = "internal"


class Span(Protocol):
    """One piece of work."""

    def add(self, attributes: Attributes) -> None:
        """Add attributes."""

    def fail(self, reason: str) -> None:
        """Mark the work as failed."""

    def child(
        self, name: str, kind: Kind, attributes: Attributes
    ) -> AbstractContextManager["Span"]:
        """Return the span of a part of this work."""

    def headers(self) -> dict[str, str]:
        """Return headers for a request of this span (W3C Trace Context); none if not propagated."""


class Tracer(Protocol):
    """Makes spans."""

    def request(self, name: str, sent: Mapping[str, str]) -> AbstractContextManager[Span | None]:
        """Return the span of a request with these headers; None: it is not sampled."""


class NoTracer:
    """Traces nothing."""

    def request(self, _name: str, _sent: Mapping[str, str]) -> AbstractContextManager[Span | None]:
        """Return no span."""
        return nullcontext()


_current: ContextVar[Span | None] = ContextVar("span", default=None)


@contextmanager
def current(span: Span) -> Iterator[Span]:
    """Make a span the current one of this task, and of tasks that begin meanwhile."""
    token = _current.set(span)
    try:
        yield span
    finally:
        _current.reset(token)


@contextmanager
def child_span(name: str, kind: Kind, attributes: Attributes) -> Iterator[Span | None]:
    """Yield a child of the current span, None without one. An exception marks it as failed."""
    above = _current.get()
    if above is None:
        yield None
        return
    with above.child(name, kind, attributes) as span, current(span):
        try:
            yield span
        except Exception as error:
            span.fail(type(error).__name__)
            raise
