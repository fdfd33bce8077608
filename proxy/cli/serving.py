"""Runs the proxy in this process until a signal ends it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import typer
import uvloop

from proxy import VERSION
from proxy.app import App, running
from proxy.app.engine import Environment
from proxy.app.validation import validate
from proxy.cli.formatting import print_error
from proxy.core.errors import ConfigError
from proxy.core.units import show_size
from proxy.runtime import logs
from proxy.runtime.allocator import return_large_buffers
from proxy.settings import Settings, loading

log = structlog.get_logger(__name__)

Load = Callable[[Callable[[str], object]], Settings]
"""Reads the settings and passes warnings about them to its argument. Raises ``ConfigError``."""


def run(config: Path | None, flags: dict[str, Any]) -> None:
    """Serve until SIGTERM or SIGINT; SIGHUP reloads the settings. Raises ``ConfigError``.

    A second SIGTERM or SIGINT ends the process at once.
    """

    def load(warn: Callable[[str], object]) -> Settings:
        settings = loading.load(config, flags, warn)
        validate(settings)
        return settings

    settings = load(print_error)
    return_large_buffers()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, load))


class _Signals:
    """The signals that the process gets: SIGHUP reloads, SIGTERM and SIGINT end it."""

    def __init__(self) -> None:
        self._received: asyncio.Queue[signal.Signals] = asyncio.Queue()
        self._is_ending = False
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._received.put_nowait, signal.SIGHUP)

    async def next(self) -> signal.Signals:
        """Return the next signal."""
        return await self._received.get()

    def _end(self, number: signal.Signals) -> None:
        """Pass the first signal on; at the second one, end the process at once.

        Like a kill, that loses only running responses and downloads.
        """
        if self._is_ending:
            log.warning("ends at once", signal=signal.Signals(number).name)
            os._exit(128 + number)
        self._is_ending = True
        self._received.put_nowait(number)


async def _serve(settings: Settings, load: Load) -> None:
    """Serve until SIGTERM or SIGINT."""
    stream = sys.stderr
    output = logs.configure(settings.log.level, settings.log.format, stream)
    signals = _Signals()
    environment = Environment(load=lambda: load(_log_old_name))
    async with running(settings, output, environment) as app:
        typer.echo(_banner(settings, app))
        log.info("listening", address=app.address, storage=str(settings.storage.path))
        while await signals.next() == signal.SIGHUP:
            await _reload(app, load)
        log.info(
            "stopping",
            responses=app.responses(),
            downloads=len(app.admin.stats()["downloads"]),
            delay_seconds=settings.shutdown_delay,
            grace_seconds=settings.shutdown_grace,
        )
    log.info("stopped")


async def _reload(app: App, load: Load) -> None:
    """Open log files again, and apply changed settings; a failure is logged and changes nothing."""
    app.reopen()
    try:
        await app.reload(await asyncio.to_thread(load, _log_old_name))
    except ConfigError as error:
        log.error("settings not reloaded, nothing has changed", error=str(error))
    except Exception:
        log.exception("settings not reloaded")


def _log_old_name(warning: str) -> None:
    log.warning("old name of a setting", warning=warning)


def _banner(settings: Settings, app: App) -> str:
    assert app.address is not None
    scheme = "https" if settings.tls else "http"
    host, _, port = app.address.rpartition(":")
    reachable = f"{socket.gethostname()}:{port}" if host in ("0.0.0.0", "[::]") else app.address  # noqa: S104
    default = settings.default_upstream
    lines = [
        f"Millpond {VERSION} listens on {scheme}://{app.address}, mirroring {default}"
        + offline_note(settings),
        f"cache: {settings.storage.path}, up to {_limit(settings, app)}",
        "to pull through it, put this into Docker's /etc/docker/daemon.json and reload Docker:",
        "  {",
        f'    "registry-mirrors": ["{scheme}://{reachable}"]',
        "  }",
    ]
    return "\n".join(lines)


def offline_note(settings: Settings) -> str:
    """Return the upstreams that are offline, or offline while they fail."""
    modes = {name: settings.offline_mode(name) for name in settings.upstreams}
    shown = {"true": "offline", "auto": "offline while it fails"}
    if len(set(modes.values())) == 1:
        mode = next(iter(modes.values()))
        return f", {shown[mode]}" if mode in shown else ""
    parts = {mode: [name for name in modes if modes[name] == mode] for mode in shown}
    return "".join(f", {shown[mode]}: {' '.join(names)}" for mode, names in parts.items() if names)


def _limit(settings: Settings, app: App) -> str:
    """Return the size limit of the cache, and the reason if it is below the configured one."""
    configured, limit = settings.storage.max_size, int(app.admin.stats()["cache"]["limit_bytes"])
    shown = show_size(limit)
    if configured.share or limit >= configured.bytes:
        return shown
    return f"{shown}: the file system has no room for the {configured} of storage.max_size"
