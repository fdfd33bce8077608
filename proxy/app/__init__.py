"""Builds and connects all parts, and owns their lifetimes in one exit stack."""

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from proxy.access.audit_log import Audit
from proxy.app import engine as engines
from proxy.app import listening, reload, serving
from proxy.app.api import OperatorApi
from proxy.app.bucket import SecondTier
from proxy.app.descriptors import DescriptorLimits, descriptor_limits, raise_limit
from proxy.app.engine import Engine, Environment
from proxy.app.fleet import Fleet
from proxy.app.identity import Identity
from proxy.app.notifications import receivers
from proxy.app.serving import Handlers
from proxy.app.workers import pool as worker_pool
from proxy.app.workers.report_receiver import ReportReceiver
from proxy.content.content import Content
from proxy.runtime import loop_monitor
from proxy.runtime.events import Events
from proxy.runtime.logs import Output, RequestLog
from proxy.runtime.supervisor import Supervisor
from proxy.services.notifications import Notifications
from proxy.services.reconcile import look_after
from proxy.services.verify import Verifier
from proxy.settings import Settings
from proxy.web.admin.pages import Admin
from proxy.web.certificate import Certificate, certificate_of

Apply = Callable[[Settings], Awaitable[Settings]]


@dataclass(frozen=True, slots=True)
class App:
    """A running proxy; ``address`` is None if it listens on the admin socket only.

    ``reload`` applies changed settings and returns those in force then; it raises ``ConfigError``
    and changes nothing if they are invalid. ``reopen`` opens log files again. ``responses`` returns
    the number in progress.
    """

    address: str | None
    admin: Admin
    operator_api: OperatorApi
    content: Content
    reload: Apply
    reopen: Callable[[], None]
    responses: Callable[[], int]
    bucket: SecondTier | None
    fleet: Fleet | None
    """None: there are no other replicas."""
    events: Events


@asynccontextmanager
async def running(
    settings: Settings,
    output: Output,
    environment: Environment | None = None,
    *,
    is_public: bool = True,
) -> AsyncIterator[App]:
    """Run the proxy while the context is open; its exit stops the proxy gracefully.

    Needs no network to start. ``output`` gets the request lines. ``is_public`` False listens on
    the admin socket only. Raises ``ConfigError`` if a setting does not work on this machine.
    """
    environment = environment or Environment()
    async with AsyncExitStack() as stack:
        certificate = certificate_of(settings) if is_public else None
        listeners = listening.for_processes(settings) if is_public else []
        for listener in listeners:
            stack.enter_context(listener)
        limits = descriptor_limits(raise_limit(), settings.most_downloads)
        address = listening.address(listeners[0]) if listeners else None
        engine = await engines.open_engine(stack, settings, environment, limits.downloads, address)
        level, metrics = settings.log.level, engine.metrics
        request_log = RequestLog(output, level=level, on_drop=metrics.cache.unlogged)
        audit = Audit(settings.access, output, metrics)
        audit.start()
        stack.push_async_callback(audit.close)
        parts = serving.handlers(engine, settings, environment, request_log, audit)
        _identify(stack, parts.identity if is_public else None, settings)
        engine.background.start("request log", request_log.write_forever)
        await _start(stack, settings, engine, parts)
        ports = _Ports(listeners, certificate, limits, output)
        reloading, count = await _accept(stack, settings, engine, parts, ports)
        reloader = reload.Reloader(settings, engine, parts, certificate, request_log)
        apply = parts.operator_api.process.begin(reloading(reloader.apply))
        if listeners:
            parts.image_updates.start(engine.background)
            _scrub(engine.background, parts.services.verifier, settings)
        yield App(
            address,
            parts.admin,
            parts.operator_api,
            engine.storage.content,
            apply,
            audit.reopen,
            count,
            engine.storage.bucket,
            engine.fleet,
            engine.events,
        )
        parts.admin.is_stopping = True
        parts.stop()
        await asyncio.sleep(settings.shutdown_delay if is_public else 0)


def _identify(stack: AsyncExitStack, identity: Identity | None, settings: Settings) -> None:
    """Identify clients as the settings say until ``stack`` closes. Raises ``ConfigError``."""
    if identity is not None:
        stack.push_async_callback(identity.close)
        identity.use(identity.prepare(settings.access), settings.access)


async def _start(
    stack: AsyncExitStack, settings: Settings, engine: Engine, parts: Handlers
) -> None:
    """Start the work in the background that needs no clients; ``stack`` ends it."""
    background, policies = engine.background, parts.guards.policies
    await _notify(stack, parts.notifications, engine, settings)
    background.start("policies", policies.watch)
    stack.push_async_callback(policies.close)
    _maintain(background, engine, settings)
    await stack.enter_async_context(parts.operator_api.running(background))


@dataclass(frozen=True, slots=True)
class _Ports:
    """The ports for clients: no listeners, one, or one for each worker."""

    listeners: list[socket.socket]
    certificate: Certificate | None
    limits: DescriptorLimits
    output: Output


async def _accept(
    stack: AsyncExitStack, settings: Settings, engine: Engine, parts: Handlers, ports: _Ports
) -> tuple[Callable[[Apply], Apply], Callable[[], int]]:
    """Accept the operator and clients until ``stack`` closes.

    Returns the function that extends a reload to all processes, and the count of responses.
    """
    background, listeners, certificate = engine.background, ports.listeners, ports.certificate
    directory = engine.storage.directory
    servers = serving.Servers(stack, engine, parts, grace=settings.shutdown_grace)
    if settings.admin.socket:
        await servers.serve_operator(stack.enter_context(listening.admin(directory)))
    if len(listeners) > 1:
        internal = stack.enter_context(listening.internal(directory))
        await servers.serve_workers(internal, limit=ports.limits.clients)
        reports = ReportReceiver(engine, parts.guards.limits, ports.output)
        pool = await worker_pool.start_workers(stack, settings, engine, reports, listeners)
        parts.services.on_switch.append(pool.switch)
        return pool.reloading, reports.responses
    if listeners:
        clients = await servers.serve_clients(
            listeners[0],
            certificate.context if certificate else None,
            limit=ports.limits.clients,
            send_timeout=settings.timeouts.send,
        )
        background.start("stalled clients", clients.watch)
        if certificate is not None:
            background.start("certificate", certificate.watch)
    return lambda apply: apply, lambda: servers.responses


async def _notify(
    stack: AsyncExitStack, notifications: Notifications, engine: Engine, settings: Settings
) -> None:
    """Send events to the receivers of the settings; ``stack`` ends it. Raises ``ConfigError``."""
    await stack.enter_async_context(notifications)
    notifications.use(receivers(settings, engine.router))
    background = Supervisor(engine.metrics.tasks, engine.metrics.readiness)
    stack.push_async_callback(background.close)
    background.start("notifications", notifications.run)


def _maintain(background: Supervisor, engine: Engine, settings: Settings) -> None:
    """Start the tasks that maintain the cache's directory and the connections to upstreams."""
    storage = engine.storage
    content, layout, origins = storage.content, storage.layout, engine.origins

    def is_offline(upstream: str) -> bool:
        return upstream in origins and origins[upstream].upstream.offline.is_forced

    background.start("loop lag", lambda: loop_monitor.watch(engine.metrics))
    background.start_essential("reconcile", lambda: look_after(content, layout, is_offline))
    background.start_essential("eviction", lambda: content.evictor.watch(content.clock))
    background.start("names", layout.publish_forever)
    background.start("feeds", storage.feeds.watch)
    background.start("upstreams", engine.upstreams.close_retired)
    if storage.bucket is not None:
        background.start("bucket uploads", storage.bucket.uploads.run)
        if storage.bucket.evictor.usage.limit_bytes is not None:
            background.start("bucket eviction", storage.bucket.evictor.watch)


def _scrub(background: Supervisor, verifier: Verifier, settings: Settings) -> None:
    every, rate = settings.storage.scrub_every, settings.storage.scrub_rate
    if every < float("inf"):
        background.start("scrub", lambda: verifier.scrub(every, rate))
