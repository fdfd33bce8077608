"""Sends traces to a collector, if one is configured."""

from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from proxy.core.errors import ConfigError
from proxy.runtime.spans import NoTracer, Tracer
from proxy.settings import Tracing

MAX_HEADERS: Final = 16 * 1024


def open_tracer(stack: AsyncExitStack, configured: Tracing) -> Tracer:
    """Return the tracer of requests; ``stack`` closes it. Raises ``ConfigError``."""
    if configured.endpoint is None:
        return NoTracer()
    for problem in problems(configured):
        raise ConfigError(problem)
    # It loads slowly, and may not be installed.
    from proxy.runtime.tracing import CollectorTracer  # noqa: PLC0415

    headers = dict(_headers(configured.headers_file)) if configured.headers_file else {}
    tracer = CollectorTracer(configured, configured.endpoint, headers)
    stack.push_async_callback(tracer.close)
    return tracer


def problems(configured: Tracing) -> Iterator[str]:
    """Yield the errors of the settings on this machine, without secrets."""
    if configured.endpoint is None:
        if configured.headers_file is not None:
            yield "tracing: set tracing.endpoint too; without it there is no tracing"
        return
    if find_spec("opentelemetry.sdk" if find_spec("opentelemetry") else "opentelemetry") is None:
        yield (
            "tracing.endpoint: the library for it is not installed; "
            "install it with: pip install 'millpond[tracing]'"
        )
    if configured.headers_file is not None:
        try:
            dict(_headers(configured.headers_file))
        except ConfigError as error:
            yield str(error)


def _headers(file: Path) -> Iterator[tuple[str, str]]:
    """Yield the headers of a file. Raises ``ConfigError``, which shows none of them."""
    try:
        with file.open("rb") as opened_file:
            lines = opened_file.read(MAX_HEADERS).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"tracing.headers_file: {file} cannot be read: {reason}") from None
    for number, line in enumerate(lines, 1):
        name, colon, value = line.partition(":")
        if not line.strip():
            continue
        if not colon or not name.strip() or not value.strip():
            reason = "write a header as Authorization: Bearer TOKEN"
            raise ConfigError(f"tracing.headers_file: {file}, line {number}: {reason}")
        yield name.strip(), value.strip()
