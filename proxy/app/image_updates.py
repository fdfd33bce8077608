"""Builds the services that keep images up to date: schedules, watched tags, and webhooks."""

from typing import NamedTuple

from proxy.access.audit import AuditLog
from proxy.app.engine import Engine
from proxy.content.pin_names import Named
from proxy.core.errors import ConfigError, RegistryError
from proxy.core.platforms import own_platform
from proxy.core.routing import Router
from proxy.runtime.supervisor import Supervisor
from proxy.services.expansion import Expansion
from proxy.services.pull import Platforms, Puller
from proxy.services.renewal import Renewal
from proxy.services.update_rules import UpdateOptions, UpdateRule, UpdateRules
from proxy.services.warm import Warmer, Warming
from proxy.services.watch import Watcher, Watching
from proxy.settings import Settings
from proxy.settings.hooks import Hook
from proxy.web.admin.hooks import Hooks


class Plan(NamedTuple):
    """The parsed settings, whose use cannot fail."""

    warmings: list[Warming]
    watching: Watching
    rules: list[UpdateRule]
    hooks: dict[str, Hook]


class ImageUpdates:
    """Owns the services; ``start`` runs them."""

    def __init__(
        self, engine: Engine, puller: Puller, expansion: Expansion, audit: AuditLog
    ) -> None:
        storage, router, counters = engine.storage, engine.router, engine.storage.counters
        clock = storage.clock
        self._rules = UpdateRules(storage.pins)
        self.warmer = Warmer(puller, expansion, router, clock, counters)
        self._renewal = Renewal(engine.cache, puller, self._rules, counters)
        self._watcher = Watcher(self._renewal, expansion, router, counters, clock)
        self.hooks = Hooks(self._renewal, router, engine.metrics, audit, clock)

    def use(self, plan: Plan) -> None:
        """Follow these settings from now on."""
        self._rules.use(plan.rules)
        self.warmer.use(plan.warmings)
        self._watcher.use(plan.watching)
        self.hooks.use(plan.hooks)

    def start(self, background: Supervisor) -> None:
        """Start the tasks."""
        background.start("warm", self.warmer.watch)
        background.start("watch", self._watcher.watch)
        background.start("webhooks", self.hooks.check_forever)
        background.start("renewal", self._renewal.fetch_forever)


def parse_plan(settings: Settings, router: Router) -> Plan:
    """Return the parsed settings. Raises ``ConfigError``."""
    watch = settings.watch
    watched = _named("watch", watch.images, router)
    options = UpdateOptions(
        _platforms(watch.platforms) if watch.platforms else None, watch.referrers
    )
    warmings = [
        Warming(one.images, _platforms(one.platforms), one.schedule, one.referrers)
        for one in settings.warm
    ]
    warmed = [
        UpdateRule(
            _named("warm", one.images, router), UpdateOptions(one.platforms, one.with_referrers)
        )
        for one in warmings
    ]
    rules = [*warmed, UpdateRule(watched, options)]
    return Plan(warmings, Watching(watched, watch.every), rules, settings.hooks)


def _named(setting: str, images: tuple[str, ...], router: Router) -> tuple[Named, ...]:
    try:
        return tuple(Named(image, router.parse_pin(image)) for image in images)
    except RegistryError as error:
        raise ConfigError(f"{setting}: {error.message}") from None


def _platforms(named: tuple[str, ...]) -> Platforms:
    return Platforms(() if named == ("all",) else named or (own_platform(),))
