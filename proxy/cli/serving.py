"""Runs the proxy as this process until a signal ends it."""

import asyncio
import signal
import socket
from pathlib import Path
from typing import Any

import structlog
import typer
import uvloop

from proxy import VERSION, configuration, logs
from proxy.app import App, running
from proxy.app.validation import validate
from proxy.cli.words import show_size
from proxy.logs import RequestLog
from proxy.metrics import CacheCounters
from proxy.settings import Settings

log = structlog.get_logger(__name__)


def run(config: Path | None, flags: dict[str, Any]) -> None:
    """Serve until SIGTERM or SIGINT. Raises ``ConfigError``."""
    settings = configuration.load(config, flags)
    validate(settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stream = logs.standard_error()
    render = logs.configure(settings.log.level, settings.log.format, stream)

    def make_request_log(counters: CacheCounters) -> RequestLog:
        level = settings.log.level
        return RequestLog(render, stream, level=level, on_drop=counters.unlogged)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signal_number, stop.set)
    async with running(settings, make_request_log) as app:
        typer.echo(_banner(settings, app))
        log.info("listening", address=app.address, storage=str(settings.storage.path))
        await stop.wait()
        log.info("stopping", grace_seconds=settings.shutdown_grace)
    log.info("stopped")


def _banner(settings: Settings, app: App) -> str:
    assert app.address is not None
    scheme = "https" if settings.tls else "http"
    host, _, port = app.address.rpartition(":")
    reachable = f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]") else app.address  # noqa: S104
    default = settings.default_upstream
    lines = [
        f"Millpond {VERSION} listens on {scheme}://{app.address}, mirroring {default}"
        + (", offline" if settings.offline else ""),
        f"cache: {settings.storage.path}, up to {_limit(settings, app)}",
        "to pull through it, put this into Docker's /etc/docker/daemon.json and reload Docker:",
        "  {",
        f'    "registry-mirrors": ["{scheme}://{reachable}"]',
        "  }",
    ]
    return "\n".join(lines)


def _limit(settings: Settings, app: App) -> str:
    """Return the most that the cache may take now, and why it is less than configured if it is."""
    configured, limit = settings.storage.max_size, int(app.admin.stats()["cache"]["limit_bytes"])
    shown = show_size(limit)
    if configured.share or limit >= configured.bytes:
        return shown
    return f"{shown}: the file system has no room for the {configured} of storage.max_size"
