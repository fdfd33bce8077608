"""Builds what this replica shares with the others of its fleet."""

from contextlib import AsyncExitStack
from dataclasses import dataclass

from proxy.fleet.store import Store
from proxy.runtime.metrics import Metrics
from proxy.runtime.supervisor import Supervisor
from proxy.settings import Fleet as FleetSettings


@dataclass(frozen=True, slots=True)
class Fleet:
    """What replicas share."""

    store: Store


def opened(
    stack: AsyncExitStack, settings: FleetSettings, metrics: Metrics, background: Supervisor
) -> Fleet | None:
    """Return the parts of a replica, None without ``fleet.redis``; ``stack`` closes them."""
    if settings.redis is None:
        return None
    store = Store(settings.redis.get_secret_value(), settings.name, metrics.fleet)
    stack.push_async_callback(store.close)
    background.start("fleet", store.watch)
    return Fleet(store)
