"""A worker process: accepts connections, and answers until the main process has ended.

Signals do not end it, because they may reach all processes at once; the main process ends it. If
the main process dies without an order, running responses continue until they end.
"""

import asyncio
import os
import signal
import socket
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from typing import Any, Final

import structlog
from aiohttp.web import ServerRunner

from proxy.access.audit_log import Audit
from proxy.app.descriptors import descriptor_limits, raise_limit
from proxy.app.listening import WORKERS_SOCKET
from proxy.app.workers.cached_content import CachedContent
from proxy.app.workers.channel import ActiveSettings, Channel, Start, Stop, Watch
from proxy.app.workers.decisions import Decisions
from proxy.app.workers.hit_handler import HitHandler
from proxy.app.workers.relay import Relay
from proxy.app.workers.reports import LogLines, Reports
from proxy.core.errors import ConfigError
from proxy.core.names import Repo, Target
from proxy.index.generations import Generations
from proxy.index.reader import IndexReader
from proxy.runtime import logs
from proxy.runtime.logs import RequestLog
from proxy.runtime.metrics import Metrics
from proxy.runtime.supervisor import Supervisor
from proxy.settings import Memory, Settings
from proxy.settings.access import Access
from proxy.web.acceptor import Acceptor
from proxy.web.announcer import Announcer
from proxy.web.certificate import certificate_of
from proxy.web.clients import Clients
from proxy.web.exchange import RequestRecorder, Watchers
from proxy.web.response_cache import ResponseCache
from proxy.web.server import RegistryServer

REPORT_SECONDS: Final = 0.25
"""Seconds between two reports."""

_FOREVER: Final = 10 * 365 * 86400.0
_DOWNLOADS: Final = 2
"""Number of downloads for which descriptors are reserved: there are none."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Inherited:
    """The descriptors that a worker gets from the main process."""

    channel: int
    listener: int
    generations: int


async def serve(inherited: Inherited) -> None:
    """Serve until the main process says stop, or has ended."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)
    channel = await Channel.from_socket(socket.socket(fileno=inherited.channel))
    start = await channel.receive_command()
    if isinstance(start, Start):
        await _Worker(channel, start, Generations(inherited.generations)).run(inherited.listener)


class _Worker:
    """The parts of a worker."""

    def __init__(self, channel: Channel, start: Start, generations: Generations) -> None:
        settings = start.active.settings
        lines = LogLines(is_terminal=start.is_terminal)
        output = logs.configure(settings.log.level, "json" if start.is_json else "console", lines)
        self._channel = channel
        self._settings = settings
        self._start = start
        self._metrics = metrics = Metrics(settings.upstreams)
        self._decisions = Decisions(start.active, metrics, generations)
        self._reports = Reports(
            channel,
            metrics,
            self._decisions.limits,
            lines,
            reports_pulls=start.reports_pulls,
        )
        self._index = IndexReader(start.index, generations)
        self._request_log = RequestLog(
            output, level=settings.log.level, on_drop=metrics.cache.unlogged
        )
        audit, announcer = Audit(Access(), output, metrics), Announcer(self._reports.pulls)
        self._recorder = RequestRecorder(metrics, self._request_log, audit, {}, Watchers(announcer))
        self._certificate = certificate_of(settings)
        self._content = CachedContent(
            settings.storage.path,
            self._index,
            self._decisions,
            self._reports.uses,
            _share(settings),
        )
        guards = self._decisions.access, self._decisions.limits, self._decisions, self._decisions
        self._responses = ResponseCache(
            self._content,
            guards,
            self._recorder,
            self._decisions.trusted,
            self._resolve,
        )

    def _resolve(self, repo: Repo, host: str, ns: str | None) -> Target:
        return self._decisions.router.resolve(repo, host, ns)  # of the settings in force now

    async def run(self, listener: int) -> None:
        """Serve until the main process says stop, or has ended."""
        async with AsyncExitStack() as stack:
            stack.callback(self._channel.close)
            stack.callback(self._content.close)
            stack.push_async_callback(self._index.close)
            stack.push_async_callback(self._decisions.close)
            background = Supervisor()
            stack.push_async_callback(self._last_report)
            stack.push_async_callback(background.close)
            background.start("request log", self._request_log.write_forever)
            if self._certificate is not None:
                background.start("certificate", self._certificate.watch)
            directory = os.open(self._settings.storage.path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, directory)
            at = f"/proc/self/fd/{directory}/{WORKERS_SOCKET}"  # a path has at most 107 bytes
            relay = Relay(at, self._reports, limit=self._start.relayed)
            stack.push_async_callback(relay.close)
            server, acceptor = self._server(relay, socket.socket(fileno=listener), background)
            runner = ServerRunner(server, shutdown_timeout=_FOREVER)
            await runner.setup()
            acceptor.start()
            background.start("reports", lambda: self._report(server))
            grace = await self._follow_commands()
            await acceptor.close()
            await self._end(runner, grace)

    def _server(
        self, relay: Relay, listener: socket.socket, background: Supervisor
    ) -> tuple[RegistryServer, Acceptor]:
        hits = HitHandler(
            self._decisions,
            self._content,
            relay,
            recorder=self._recorder,
            responses=self._responses,
        )
        clients = Clients(self._metrics.cache, self._settings.timeouts.send)
        background.start("stalled clients", clients.watch)
        server = RegistryServer(
            hits.handle,
            relay.handle,
            self._responses.get,
            clients=clients,
            trusted=self._decisions.trusted,
        )
        limits = descriptor_limits(raise_limit(), _DOWNLOADS)
        context = None if self._certificate is None else self._certificate.context
        return server, Acceptor(listener, server, clients, limit=limits.clients, context=context)

    async def _follow_commands(self) -> float | None:
        """Return the seconds that running responses have, None without a limit."""
        while (command := await self._channel.receive_command()) is not None:
            match command:
                case ActiveSettings():
                    self._use(command)
                case Watch():
                    self._reports.pulls.are_wanted = command.reports_pulls
                case Stop():
                    return command.grace
        log.warning("the main process has ended")
        return None

    async def _end(self, runner: ServerRunner, grace: float | None) -> None:
        """Let running responses end; the death of a main process that sent a stop ends them."""
        ends = [asyncio.create_task(runner.cleanup(), name="end responses")]
        if grace is not None:
            ends.append(asyncio.create_task(self._channel.receive_command(), name="end at once"))
        await asyncio.wait(ends, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        await asyncio.gather(*ends, return_exceptions=True)

    def _use(self, active: ActiveSettings) -> None:
        """Use other settings; if they are invalid here, everything is relayed from now on."""
        settings = active.settings
        try:
            if self._certificate is not None and settings.tls is not None:
                self._certificate.use(settings.tls)
            self._decisions.use(active)
        except ConfigError as error:
            log.error("settings not used by a worker", error=str(error))
        self._responses.forget()
        self._request_log.set_level(settings.log.level)
        logs.set_level(settings.log.level)

    async def _report(self, server: RegistryServer) -> None:
        while True:
            self._reports.responses = server.responses
            await self._reports.send()
            await asyncio.sleep(REPORT_SECONDS)

    async def _last_report(self) -> None:
        with suppress(OSError):
            await self._reports.send()


def _share(settings: Settings) -> Memory:
    """Return this worker's share of the memory for content."""
    memory, count = settings.memory, settings.processes
    share: dict[str, Any] = {
        "manifests": int(memory.manifests) // count,
        "blobs": int(memory.blobs) // count,
    }
    return memory.model_copy(update=share)
