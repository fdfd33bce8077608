"""Connects the facts of this replica with those of the others in its fleet."""

from contextlib import AsyncExitStack

from proxy.app.fleet import Exchange
from proxy.app.storage import Storage
from proxy.app.upstreams import Upstreams
from proxy.content.downloads import Download, Downloads
from proxy.core import policy
from proxy.core.errors import ManifestUnknown
from proxy.core.names import Target
from proxy.core.policy import Action
from proxy.core.records import Descriptor, TagRecord
from proxy.core.sources import Place
from proxy.fleet.in_use import SharedFeeds
from proxy.fleet.limits import SharedLimits
from proxy.fleet.pins import SharedPins
from proxy.fleet.store import Store
from proxy.fleet.tag_facts import DROPPED, Fact
from proxy.fleet.tags import SharedTags
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origins
from proxy.runtime.metrics import Metrics
from proxy.runtime.supervisor import Supervisor


class SharedFacts:
    """The facts that replicas share through Redis."""

    def __init__(
        self, store: Store, storage: Storage, origins: Origins, upstreams: Upstreams
    ) -> None:
        self._store = store
        self._origins = origins
        self._clock = storage.clock
        self.tags = SharedTags(
            store,
            storage.content.tags,
            storage.clock,
            is_shared=self._is_shared,
            stays=self._stays,
        )
        self._limits = SharedLimits(store, upstreams.current, self._is_shared)
        upstreams.on_limits.append(self._limits.change)
        self._own_pins = storage.pins
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

    def share_small(self, manifests: Manifests, downloads: Downloads, exchange: Exchange) -> None:
        """Give other replicas the small content that registries send from now on."""

        def fetched(
            target: Target,
            descriptor: Descriptor,
            body: bytes,
            is_public: bool,  # noqa: FBT001
        ) -> None:
            if self._is_shared(target.upstream):
                exchange.small.add(target, descriptor, body, is_public)

        def ended(download: Download) -> None:
            is_new = download.landed and download.place is Place.REGISTRY
            if is_new and self._is_shared(download.target.upstream):
                exchange.small_blobs.add(download)

        manifests.on_fetched.append(fetched)
        downloads.on_ended.append(ended)

    def _is_shared(self, upstream: str) -> bool:
        """Return True if all clients of an upstream may see its facts."""
        origin = self._origins.get(upstream)
        return origin is not None and origin.callers is None

    def _stays(self, fact: Fact, record: TagRecord) -> bool:
        """Return True for a pinned tag that was dropped, or a deleted one that is kept."""
        target, tag = fact.key
        if fact.descriptor == DROPPED:
            return bool(self._own_pins.pinning(target, tag, record.descriptor.digest))
        origin = self._origins.get(target.upstream)
        if origin is None:
            return False
        deleted = ManifestUnknown(f"{target}:{tag} was deleted")
        action = policy.on_failure(record.checked_at, origin.rule_for(tag), self._clock(), deleted)
        return action is Action.SERVE
