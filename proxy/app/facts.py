"""Connects the facts of this replica with those of the others in its fleet."""

from contextlib import AsyncExitStack

from proxy.app.fleet import Fleet
from proxy.app.storage import Storage
from proxy.app.upstreams import Upstreams
from proxy.content.downloads import Download, Downloads
from proxy.core import policy
from proxy.core.errors import ManifestUnknown
from proxy.core.names import Target
from proxy.core.policy import Action
from proxy.core.records import Descriptor, TagRecord
from proxy.core.sources import Place
from proxy.fleet.in_use import FeedRows
from proxy.fleet.limits import SharedLimits
from proxy.fleet.pins import PinRows
from proxy.fleet.shared_rows import SharedRows
from proxy.fleet.tag_facts import DROPPED, Fact
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
        self._pins = storage.pins
        self._shared_pins = SharedRows(store, PinRows(storage.pins))
        self._feeds = SharedRows(store, FeedRows(storage.feeds))

    def start(self, stack: AsyncExitStack, metrics: Metrics) -> None:
        """Follow the other replicas until ``stack`` closes."""
        background = Supervisor(metrics.tasks, metrics.readiness)
        stack.push_async_callback(background.close)
        background.start("fleet", self._store.watch)
        background.start("fleet tags", self.tags.follow)
        background.start("fleet limits", self._limits.follow)
        background.start("fleet pins", self._shared_pins.run)
        background.start("fleet images in use", self._feeds.run)

    def share_small(self, manifests: Manifests, downloads: Downloads) -> None:
        """Give other replicas the small content that registries send from now on."""
        if (exchange := self._exchange) is None:
            return

        def fetched(
            target: Target,
            descriptor: Descriptor,
            body: bytes,
            is_public: bool,  # noqa: FBT001
        ) -> None:
            if self._is_shared(target.upstream):
                exchange.small.add(target, descriptor, body, is_public)

        def ended(download: Download) -> None:
            is_new = download.is_proven and download.place is Place.REGISTRY
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
            return bool(self._pins.pinning(target, tag, record.descriptor.digest))
        origin = self._origins.get(target.upstream)
        if origin is None:
            return False
        deleted = ManifestUnknown(f"{target}:{tag} was deleted")
        action = policy.on_failure(record.checked_at, origin.rule_for(tag), self._clock(), deleted)
        return action is Action.SERVE
