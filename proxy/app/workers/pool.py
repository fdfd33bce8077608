"""Starts the workers, restarts those that die, and stops them.

Each worker has a listening socket, all on one port (SO_REUSEPORT). The main process keeps the
sockets open: connections to a worker that has died wait until the next one accepts them.
"""

import asyncio
import os
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import structlog

import proxy
from proxy.app.descriptors import descriptor_limits, raise_limit
from proxy.app.engine import Engine
from proxy.app.workers.channel import ActiveSettings, Channel, Command, Start, Stop, Watch
from proxy.app.workers.report_receiver import ReportReceiver
from proxy.index.generations import Generations
from proxy.runtime.events import EventKind, Events
from proxy.runtime.supervisor import Supervisor
from proxy.settings import Settings
from proxy.upstream.registry import Upstream

_Apply = Callable[[Settings], Awaitable[Settings]]

_LATE_SECONDS: Final = 5.0
"""Additional seconds that a worker has to stop before it is killed."""

_START_SECONDS: Final = 30.0
HANG_SECONDS: Final = 10.0
"""A worker reports four times a second. One without a report for this time hangs."""

_CHECK_SECONDS: Final = 1.0
_ROOT: Final = Path(proxy.__file__).resolve().parents[1]

log = structlog.get_logger(__name__)


class WorkerEndedError(Exception):
    """A worker has died."""


@dataclass(slots=True)
class _Running:
    process: Process
    channel: Channel


class WorkerPool:
    """The workers, from ``start`` until ``close``."""

    def __init__(
        self,
        start: Start,
        listeners: Sequence[socket.socket],
        generations: Generations,
        reports: ReportReceiver,
        supervisor: Supervisor,
    ) -> None:
        self._start = start
        self._listeners = listeners
        self._generations = generations
        self._reports = reports
        self._supervisor = supervisor
        self._running: dict[str, _Running] = {}
        self._reporting: set[str] = set()
        self._all_report = asyncio.Event()
        self._is_stopping = False

    async def start(self) -> None:
        """Start all workers, and return when they serve, or after a time limit."""
        for number, listener in enumerate(self._listeners, 1):
            name = str(number)
            run = partial(self._run, name, listener)
            self._supervisor.start_essential(f"worker {name}", run)
        with suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                await self._all_report.wait()

    async def watch_pulls(self, events: Events) -> None:
        """Tell all workers whether anyone subscribes to events of pulls, until cancelled."""
        changed = asyncio.Event()
        events.on_wanted.append(changed.set)
        while True:
            changed.clear()
            watch = Watch(events.wanted(EventKind.PULL))
            if watch.reports_pulls is not self._start.reports_pulls:
                self._start = replace(self._start, reports_pulls=watch.reports_pulls)
                await self._command(watch)
            await changed.wait()

    def reloading(self, apply: _Apply) -> _Apply:
        """Return a function that applies settings by ``apply``, and then in all workers.

        As soon as they are in force, no worker uses older ones.
        """

        async def reload(settings: Settings) -> Settings:
            applied = await apply(settings)
            await self._activate(applied, self._start.active.switched)
            return applied

        return reload

    async def switch(self, upstreams: Mapping[str, Upstream]) -> None:
        """Stop workers from answering for upstreams whose offline mode the operator has changed."""
        live = (name for name, one in upstreams.items() if one.offline.live is not None)
        await self._activate(self._start.active.settings, frozenset(live))

    async def _activate(self, settings: Settings, switched: frozenset[str]) -> None:
        active = ActiveSettings(settings, self._generations.change_settings(), switched)
        self._start = replace(self._start, active=active)
        await self._command(active)

    async def close(self, grace: float) -> None:
        """Stop all workers; running responses may take ``grace`` seconds."""
        self._is_stopping = True
        for listener in self._listeners:
            listener.close()
        await self._command(Stop(grace))
        with suppress(TimeoutError):
            async with asyncio.timeout(grace + _LATE_SECONDS):
                while self._running:
                    await next(iter(self._running.values())).process.wait()
                    await asyncio.sleep(0.01)  # its last report
        await self._supervisor.close()

    async def _command(self, command: Command) -> None:
        for running in list(self._running.values()):
            with suppress(OSError):  # it is about to be restarted
                await running.channel.send_command(command)

    async def _run(self, name: str, listener: socket.socket) -> None:
        """Run a worker until it ends. Raises ``WorkerEndedError`` unless it was told to."""
        if self._is_stopping:
            return
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                process = await self._spawn(theirs, listener)
            channel = await Channel.from_socket(ours)
        except BaseException:
            ours.close()
            raise
        self._running[name] = _Running(process, channel)
        try:
            await channel.send_command(self._start)
            while (frame := await self._report(name, channel)) is not None:
                await self._reports.add(name, frame)
                self._reporting.add(name)
                if len(self._reporting) == len(self._listeners):
                    self._all_report.set()
            status = await process.wait()
        finally:
            del self._running[name]
            self._reporting.discard(name)
            self._reports.forget(name)
            channel.close()
            if process.returncode is None:
                process.kill()
                await process.wait()
        if not self._is_stopping:
            raise WorkerEndedError(f"it ended with status {status}")

    async def _report(self, name: str, channel: Channel) -> bytes | None:
        """Return the next report of a worker, None at its end. Raises ``WorkerEndedError``.

        Time in which this process does not run does not count.
        """
        seconds = HANG_SECONDS if name in self._reporting else HANG_SECONDS + _START_SECONDS
        receiving = asyncio.ensure_future(channel.receive())
        try:
            for _ in range(int(seconds / _CHECK_SECONDS)):
                done, _ = await asyncio.wait([receiving], timeout=_CHECK_SECONDS)
                if done or self._is_stopping:
                    return await receiving
            raise WorkerEndedError(
                f"it has reported nothing for {seconds:g} seconds, and is killed"
            )
        finally:
            receiving.cancel()

    async def _spawn(self, channel: socket.socket, listener: socket.socket) -> Process:
        fds = channel.fileno(), listener.fileno(), self._generations.fd
        known = os.environ.get("PYTHONPATH")
        path = str(_ROOT) if not known else f"{_ROOT}{os.pathsep}{known}"
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "proxy.app.workers", *map(str, fds)),
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=fds,
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,
        )


async def start_workers(
    stack: AsyncExitStack,
    settings: Settings,
    engine: Engine,
    reports: ReportReceiver,
    listeners: Sequence[socket.socket],
) -> WorkerPool:
    """Return the running workers, one for each of ``listeners``; ``stack`` stops them."""
    index, metrics, output = engine.storage.index, engine.metrics, reports.output
    assert index.generations is not None
    limits = descriptor_limits(raise_limit(), settings.most_downloads)
    start = Start(
        ActiveSettings(settings, index.generations.settings),
        index.file,
        relayed=max(1, limits.clients // len(listeners)),
        is_json=output.is_json,
        is_terminal=output.stream.isatty(),
        reports_pulls=engine.events.wanted(EventKind.PULL),
    )
    supervisor = Supervisor(metrics.tasks, metrics.readiness)
    pool = WorkerPool(start, listeners, index.generations, reports, supervisor)
    stack.push_async_callback(pool.close, settings.shutdown_grace)
    await pool.start()
    supervisor.start("watched pulls", partial(pool.watch_pulls, engine.events))
    return pool
