"""Settings for traces."""

from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field

from proxy.settings.units import Section

_SCHEMES: Final = ("http", "https")


def _collector(value: str) -> str:
    """Return the URL of a collector. Raises ``ValueError``."""
    try:
        url = urlsplit(value)
        is_complete = bool(url.hostname) and url.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or url.scheme not in _SCHEMES or "@" in url.netloc:
        raise ValueError(
            "not the address of a collector; write http://collector.example:4318/v1/traces, and "
            "put credentials into headers_file"
        )
    return value


class Tracing(Section):
    """Traces of requests, for OpenTelemetry."""

    endpoint: Annotated[str, AfterValidator(_collector)] | None = None
    """Where to send spans with OTLP over HTTP, such as `http://collector.example:4318/v1/traces`.
    Without it there is no tracing."""
    headers_file: Path | None = None
    """File with headers for the collector, one per line, such as `Authorization: Bearer …`."""
    service: Annotated[str, Field(min_length=1, max_length=255)] = "millpond"
    """Name of this service in traces."""
    sample_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of requests that are traced. The sampling decision of a client that sends `traceparent`
    takes precedence."""
    propagate: bool = False
    """Send `traceparent` to registries, so that a Millpond behind this one continues the trace."""
