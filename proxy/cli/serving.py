"""``millpond serve`` and ``millpond check``: run the proxy, and look at its settings."""

import asyncio
import signal
import socket
from typing import Annotated, Any

import structlog
import typer
import uvloop

from proxy import VERSION, configuration, logs
from proxy.app import running
from proxy.cli.options import ConfigOption, StorageOption
from proxy.cli.words import refuse
from proxy.errors import ConfigError
from proxy.logs import RequestLog
from proxy.metrics import CacheCounters
from proxy.settings import Settings

log = structlog.get_logger(__name__)


def serve(
    config: ConfigOption = None,
    listen: Annotated[
        str | None, typer.Option(metavar="HOST:PORT", help="Where to listen.")
    ] = None,
    storage: StorageOption = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Serve what is held; ask no upstream.")
    ] = False,
) -> None:
    """Run the proxy until SIGTERM or SIGINT."""
    flags: dict[str, Any] = {}
    if listen is not None:
        flags["listen"] = listen
    if storage is not None:
        flags["storage"] = {"path": str(storage)}
    if offline:
        flags["offline"] = True
    try:
        settings = configuration.load(config, flags)
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_serve(settings))
    except ConfigError as error:
        refuse(str(error))


def check(config: ConfigOption = None) -> None:
    """Validate the settings and name what is wrong with them."""
    try:
        settings = configuration.load(config)
    except ConfigError as error:
        refuse(str(error))
    typer.echo(f"ok: {len(settings.upstreams)} upstreams, listening on {settings.listen}")


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
        assert app.address is not None
        typer.echo(_banner(settings, app.address))
        log.info("listening", address=app.address, storage=str(settings.storage.path))
        await stop.wait()
        log.info("stopping", grace_seconds=settings.shutdown_grace)
    log.info("stopped")


def _banner(settings: Settings, address: str) -> str:
    scheme = "https" if settings.tls else "http"
    host, _, port = address.rpartition(":")
    reachable = f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]") else address  # noqa: S104
    default = settings.default_upstream
    size = settings.storage.max_size
    lines = [
        f"Millpond {VERSION} listens on {scheme}://{address}, mirroring {default}"
        + (", offline" if settings.offline else ""),
        f"cache: {settings.storage.path}, up to {size}",
        "to pull through it, put this into Docker's /etc/docker/daemon.json and reload Docker:",
        "  {",
        f'    "registry-mirrors": ["{scheme}://{reachable}"]',
        "  }",
    ]
    return "\n".join(lines)
