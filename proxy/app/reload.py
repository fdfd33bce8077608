"""Applies changed settings while the proxy runs: all that can be applied, or nothing."""

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog

from proxy.app.upstreams import Upstreams
from proxy.content.pins import Pins
from proxy.core.errors import ConfigError, RegistryError
from proxy.core.routing import Router
from proxy.repository.origins import Origins
from proxy.settings import Settings
from proxy.web.admin.actions import Token
from proxy.web.certificate import Certificate
from proxy.web.response_cache import ResponseCache

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Parts:
    """The parts of a running proxy that take new settings. ``certificate`` None: no HTTPS."""

    router: Router
    upstreams: Upstreams
    sources: Origins
    pins: Pins
    prepared: ResponseCache
    certificate: Certificate | None
    token: Token


class Reloader:
    """Knows the settings in force. One reload at a time."""

    def __init__(self, settings: Settings, parts: Parts) -> None:
        self._settings = settings
        self._parts = parts
        self._reloading = asyncio.Lock()

    async def apply(self, settings: Settings) -> Settings:
        """Put ``settings`` in force as far as that needs no restart; return those in force.

        Running downloads and connections go on as they are. Raises ``ConfigError``, and has then
        changed nothing.
        """
        async with self._reloading:
            wanted = _applicable(self._settings, settings)
            await self._apply(wanted)
            changed = _differences(self._settings, wanted)
            self._settings = wanted
        log.info("settings reloaded", changed=changed)
        if refused := _differences(wanted, settings):
            log.warning("changed settings need a restart", settings=refused)
        return wanted

    async def _apply(self, settings: Settings) -> None:
        """Check everything first; what comes after the checks neither fails nor awaits."""
        parts = self._parts
        trial = Router(settings)
        try:
            pins = parts.pins.parsed(settings.pins, trial.parse_pin)
        except RegistryError as error:
            raise ConfigError(f"pins: {error.message}") from None
        plan = await parts.upstreams.prepare(settings)
        try:
            if parts.certificate is not None and settings.tls is not None:
                parts.certificate.use(settings.tls)
        except ConfigError:
            await parts.upstreams.discard(plan)
            raise
        parts.sources.replace(parts.upstreams.commit(plan))
        parts.router.update(settings)
        parts.pins.use(pins)
        parts.token.use(settings.admin.token_file)
        parts.prepared.forget()


def _applicable(running: Settings, wanted: Settings) -> Settings:
    """Return ``wanted``, with the settings in force where a change needs a restart."""
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
            "admin": running.admin.model_copy(update={"token_file": wanted.admin.token_file}),
            "timeouts": wanted.timeouts.model_copy(update=fixed),
            "patience": wanted.patience,
            "parallel": wanted.parallel,
            "log": running.log.model_copy(update={"level": wanted.log.level}),
        }
    )


def _differences(one: Settings, other: Settings) -> list[str]:
    """Return the names of the settings that differ; never their values, which may be secret."""
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
