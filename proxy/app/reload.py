"""Applies changed settings to the running proxy: all that need no restart, or none on an error."""

import asyncio
from functools import partial
from typing import Any

import structlog

from proxy.access.control import Policy
from proxy.app.engine import Engine
from proxy.app.image_updates import parse_plan
from proxy.app.notifications import receivers
from proxy.app.serving import Handlers
from proxy.core.errors import ConfigError, RegistryError
from proxy.core.routing import Router
from proxy.policies.rules import compile_rules
from proxy.runtime.executors import in_thread
from proxy.runtime.logs import RequestLog, set_level
from proxy.settings import Settings
from proxy.settings.access import Access
from proxy.web.certificate import Certificate

log = structlog.get_logger(__name__)


class Reloader:
    """Holds the settings in force; reloads run one at a time."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        handlers: Handlers,
        certificate: Certificate | None,
        request_log: RequestLog,
    ) -> None:
        """``certificate`` None: the proxy serves plain HTTP."""
        self._settings = settings
        self._engine = engine
        self._handlers = handlers
        self._certificate = certificate
        self._request_log = request_log
        self._reloading = asyncio.Lock()

    async def apply(self, settings: Settings) -> Settings:
        """Apply the settings that need no restart; return the settings in force now.

        Running downloads and connections continue unchanged. Raises ``ConfigError`` and changes
        nothing if a setting is invalid.
        """
        async with self._reloading:
            wanted = _applicable(self._settings, settings)
            await self._apply(wanted)
            changed = _differences(self._settings, wanted)
            self._settings = wanted
        log.info("settings reloaded", changed=changed)
        if refused := _differences(wanted, settings):
            log.warning("changed settings need a restart", settings=refused)
        self._request_log.set_level(wanted.log.level)
        set_level(wanted.log.level)
        return wanted

    async def _apply(self, settings: Settings) -> None:
        """Check everything, then apply it in one step that neither fails nor awaits."""
        engine, certificate = self._engine, self._certificate
        router, upstreams, pins = engine.router, engine.upstreams, engine.storage.pins
        wanted = Router(settings)
        policy = Policy.of(settings.access, wanted.parse_selector)
        identity = self._handlers.identity
        sources = None if identity is None else identity.prepare(settings.access)
        try:
            parsed = pins.parsed(settings.pins, wanted.parse_pin)
        except RegistryError as error:
            raise ConfigError(f"pins: {error.message}") from None
        image_updates = parse_plan(settings, wanted)
        rules = await in_thread(partial(compile_rules, settings.policies, wanted.parse_selector))
        heard = await in_thread(partial(receivers, settings, wanted))
        plan = await upstreams.prepare(settings)
        try:
            if certificate is not None and settings.tls is not None:
                certificate.use(settings.tls)
        except ConfigError:
            await upstreams.discard(plan)
            raise
        engine.origins.replace(upstreams.commit(plan))
        router.update(settings)
        pins.use(parsed)
        if identity is not None:
            identity.use(sources, settings.access)
        self._handlers.guards.policies.use(rules)
        self._handlers.guards.access.use(policy)
        self._handlers.guards.limits.use(settings.access)
        self._handlers.image_updates.use(image_updates)
        self._handlers.notifications.use(heard)
        self._handlers.audit.use(settings.access)
        self._handlers.trusted.use(settings.access.trusted_proxies)
        self._handlers.admin_access.use(settings.admin.token_file)
        self._handlers.admin.sites.use(settings)
        self._handlers.responses.forget()


def _applicable(running: Settings, wanted: Settings) -> Settings:
    """Return ``wanted``, but with the current value of each setting that needs a restart."""
    is_https = running.tls is not None and wanted.tls is not None
    fixed = {"check": running.timeouts.check, "send": running.timeouts.send}
    return running.model_copy(
        update={
            "tls": wanted.tls if is_https else running.tls,
            "default_upstream": wanted.default_upstream,
            "upstreams": wanted.upstreams,
            "freshness": wanted.freshness,
            "offline": wanted.offline,
            "fallback": wanted.fallback,
            "pins": wanted.pins,
            "access": _applicable_access(running.access, wanted.access),
            "policies": wanted.policies,
            "warm": wanted.warm,
            "watch": wanted.watch,
            "hooks": wanted.hooks,
            "notifications": wanted.notifications,
            "admin": running.admin.model_copy(update={"token_file": wanted.admin.token_file}),
            "timeouts": wanted.timeouts.model_copy(update=fixed),
            "patience": wanted.patience,
            "parallel": wanted.parallel,
            "log": running.log.model_copy(update={"level": wanted.log.level}),
        }
    )


def _applicable_access(running: Access, wanted: Access) -> Access:
    """Return ``wanted``, with the current authorities of client certificates."""
    old, new = running.client_certificates, wanted.client_certificates
    if old is not None and new is not None and old.ca_file == new.ca_file:
        return wanted
    return wanted.model_copy(update={"client_certificates": old})


def _differences(one: Settings, other: Settings) -> list[str]:
    """Return the names of settings that differ, without their values, which may be secret."""
    left, right = _flat(one.model_dump(), ()), _flat(other.model_dump(), ())
    names = {path for path in left.keys() | right.keys() if left.get(path) != right.get(path)}
    return sorted(".".join(path) for path in names)


def _flat(value: dict[str, Any], path: tuple[str, ...]) -> dict[tuple[str, ...], object]:
    found: dict[tuple[str, ...], object] = {}
    for key, entry in value.items():
        if isinstance(entry, dict):
            found |= _flat(entry, (*path, key))
        else:
            found[*path, key] = entry
    return found
