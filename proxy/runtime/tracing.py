"""Spans sent to an OpenTelemetry collector. The only module that imports its libraries.

They are optional, and load slowly: import this only if tracing is configured.
"""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from proxy import VERSION
from proxy.runtime import spans
from proxy.runtime.spans import Attributes, Kind
from proxy.settings import Tracing

EXPORT_SECONDS: Final = 3.0
"""For each attempt to send spans, and for the last ones when the process ends."""

_W3C: Final = TraceContextTextMapPropagator()
_KINDS: Final = {
    Kind.SERVER: trace.SpanKind.SERVER,
    Kind.CLIENT: trace.SpanKind.CLIENT,
    Kind.INTERNAL: trace.SpanKind.INTERNAL,
}


class CollectorTracer:
    """Samples requests, and sends their spans with OTLP over HTTP from a thread.

    Spans that the collector does not accept in time are lost; nothing waits for it.
    """

    def __init__(self, settings: Tracing, endpoint: str, headers: Mapping[str, str]) -> None:
        exporter = OTLPSpanExporter(endpoint, headers=dict(headers), timeout=EXPORT_SECONDS)
        about = {"service.name": settings.service, "service.version": VERSION}
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(settings.sample_ratio)),
            resource=Resource.create(about),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("millpond", VERSION)
        self._propagates = settings.propagate

    @contextmanager
    def request(self, name: str, sent: Mapping[str, str]) -> Iterator[spans.Span | None]:
        """Yield the span of a request; None: it is not sampled.

        ``sent`` are headers of a client that may continue its trace with ``traceparent``, and
        decide whether it is sampled.
        """
        above = _W3C.extract({key: sent[key] for key in _W3C.fields if key in sent})
        with self._tracer.start_as_current_span(
            name, above, _KINDS[Kind.SERVER], record_exception=False
        ) as found:
            if not found.is_recording():
                yield None
                return
            with spans.current(_Span(self._tracer, found, propagates=self._propagates)) as span:
                yield span

    async def close(self) -> None:
        """Send the last spans, and end the thread."""
        await asyncio.to_thread(self._provider.shutdown)


class _Span:
    def __init__(self, tracer: trace.Tracer, span: trace.Span, *, propagates: bool) -> None:
        self._tracer = tracer
        self._span = span
        self._propagates = propagates

    def add(self, attributes: Attributes) -> None:
        for name, value in attributes.items():
            if value is not None:
                self._span.set_attribute(name, value)

    def fail(self, reason: str) -> None:
        self._span.set_attribute("error.type", reason)
        self._span.set_status(trace.StatusCode.ERROR)

    @contextmanager
    def child(self, name: str, kind: Kind, attributes: Attributes) -> Iterator[spans.Span]:
        above = trace.set_span_in_context(self._span)
        begun = self._tracer.start_span(name, above, _KINDS[kind])
        span = _Span(self._tracer, begun, propagates=self._propagates)
        span.add(attributes)
        try:
            yield span
        finally:
            begun.end()

    def headers(self) -> dict[str, str]:
        carrier: dict[str, str] = {}
        if self._propagates:
            _W3C.inject(carrier, trace.set_span_in_context(self._span))
        return carrier
