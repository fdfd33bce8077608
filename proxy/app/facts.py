"""Connects what this replica knows to what the others of its fleet know."""

from contextlib import AsyncExitStack

from proxy.app.fleet import Fleet
from proxy.app.storage import Storage
from proxy.app.upstreams import Upstreams
from proxy.core.names import Target
from proxy.core.records import Descriptor
from proxy.fleet.in_use import SharedFeeds
from proxy.fleet.limits import SharedLimits
from proxy.fleet.pins import SharedPins
from proxy.fleet.tags import SharedTags
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origins
from proxy.runtime.metrics import Metrics
from proxy.runtime.supervisor import Supervisor


class SharedFacts:
    """The facts that replicas share through Redis."""

    def __init__(
        self, fleet: Fleet, storage: Storage, origins: Origins, upstreams: Upstreams
    ) -> None:
        self._store = store = fleet.store
        self._exchange = fleet.exchange
        self._origins = origins
        self.tags = SharedTags(store, storage.content.tags, storage.clock, self._is_shared)
        self._limits = SharedLimits(store, upstreams.current, self._is_shared)
        upstreams.on_limits.append(self._limits.change)
        self._pins = SharedPins(store, storage.pins)
        self._feeds = SharedFeeds(store, storage.feeds)

    def start(self, stack: AsyncExitStack, metrics: Metrics) -> None:
        """Follow the other replicas until ``stack`` closes."""
        background = Supervisor(metrics.tasks, metrics.readiness)
        stack.push_async_callback(background.close)
        background.start("fleet", self._store.watch)
        background.start("fleet tags", self.tags.follow)
        background.start("fleet limits", self._limits.follow)
        background.start("fleet pins", self._pins.run)
        background.start("fleet images in use", self._feeds.run)

    def share_manifests(self, manifests: Manifests) -> None:
        """Give other replicas the small manifests that the registry sends from now on."""
        if self._exchange is None:
            return
        small = self._exchange.small

        def fetched(
            target: Target,
            descriptor: Descriptor,
            body: bytes,
            is_public: bool,  # noqa: FBT001
        ) -> None:
            if self._is_shared(target.upstream):
                small.add(target, descriptor, body, is_public)

        manifests.on_fetched.append(fetched)

    def _is_shared(self, upstream: str) -> bool:
        """Return True if every client of an upstream may see what it says."""
        origin = self._origins.get(upstream)
        return origin is not None and origin.callers is None
