"""The configured upstreams, each with its freshness rule."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple, Protocol

from proxy.core import policy
from proxy.core.errors import NameUnknown
from proxy.core.names import Digest, Tag, is_digest
from proxy.core.policy import NOW, CacheDirective, MaxAge, Rule
from proxy.core.sources import SharedManifests, SharedSource, Source
from proxy.core.tag_rules import TagRules
from proxy.storage.fallback import FallbackDirectory
from proxy.upstream.registry import Upstream

NO_TAG_RULES: Final = TagRules()


class CallerTimes(NamedTuple):
    """Seconds that a client counts as confirmed: normally, and while the registry fails."""

    ttl: float
    stale: float


class SmallSource(Source, Protocol):
    """A source of small blobs."""

    @property
    def largest(self) -> int:
        """It has no blob of more bytes."""


class Peers(NamedTuple):
    """Other replicas as sources: the one that is fetching a blob, and those that have content.

    ``small`` has small blobs that one of them has fetched.

    ``delegate`` is one that fetches content for which this one has no space, ``rescue`` one
    that continues a blob after the registry has broken off here.

    ``manifests`` finds a manifest there or in the bucket; without one this replica has the right
    to ask the registry, until ``release``.
    """

    small: SmallSource
    lease_holder: Source
    replicas: SharedSource
    manifests: SharedManifests
    delegate: Source
    rescue: Source
    release: Callable[[str, Digest], None]


class SharedSources(NamedTuple):
    """Content from other machines: in the bucket, and at other replicas."""

    bucket: SharedSource | None = None
    peers: Peers | None = None


class Origin(NamedTuple):
    """One upstream, its address, and the maximum age of its answers.

    ``version`` differs between two configurations of an upstream, because content that is absent
    under one may exist under the other. ``since`` is the monotonic time from which it is in use,
    for the same reason. ``fallbacks`` and ``shared_sources``, the content of other
    machines, are read before the registry is asked. ``callers`` None: the registry is asked with
    the same login for all clients.
    """

    upstream: Upstream
    online_rule: Rule
    version: int = 0
    since: float = 0.0
    url: str = ""
    fallbacks: tuple[FallbackDirectory, ...] = ()
    callers: CallerTimes | None = None
    shared_sources: SharedSources = SharedSources()
    tag_rules: TagRules = NO_TAG_RULES

    @property
    def rule(self) -> Rule:
        """The maximum age of its answers now: unlimited offline."""
        if not self.upstream.is_offline:
            return self.online_rule
        return replace(self.online_rule, offline=True)

    @property
    def local_sources(self) -> list[Source]:
        """The sources of blobs before the registry, in order."""
        bucket = self.shared_sources.bucket
        return [*self.fallbacks] if bucket is None else [*self.fallbacks, bucket]

    @property
    def blob_sources(self) -> list[Source]:
        """The sources of blobs, in order: without the registry if offline.

        If no replica is fetching a blob, this one begins to. So that source comes before all
        sources that only one replica should ask.
        """
        registry: list[Source] = [] if self.rule.offline else [self.upstream]
        bucket, peers = self.shared_sources
        if peers is None:
            return [*self.local_sources, *registry]
        shared: list[Source] = [] if bucket is None else [bucket]
        if not registry:
            return [*self.local_sources, peers.small, peers.replicas]
        fetched = [peers.lease_holder, *shared, peers.replicas]
        if self.callers is None:  # another replica would ask without the client's login
            fetched = [peers.small, *fetched, peers.delegate]
        return [*self.fallbacks, *fetched, *registry, peers.rescue]

    def sources_of(self, size: int | None) -> list[Source]:
        """Return where a blob of ``size`` bytes comes from, in order; None if it is not known."""
        peers = self.shared_sources.peers
        if peers is None or size is None or size <= peers.small.largest:
            return self.blob_sources
        return [source for source in self.blob_sources if source is not peers.small]

    @property
    def confirming_sources(self) -> list[Source]:
        """The sources that confirm that a repository has a blob, in order.

        Other machines are asked only if the registry is not: the registry may have more.
        """
        return self.blob_sources if self.rule.offline else [*self.fallbacks, self.upstream]

    @property
    def manifest_source(self) -> SharedManifests | None:
        """The source of manifests besides fallback directories and the registry."""
        bucket, peers = self.shared_sources
        if peers is None:
            return bucket
        return peers.replicas if self.rule.offline else peers.manifests

    def release(self, upstream: str, ref: str) -> None:
        """Allow other replicas to ask the registry for a manifest, after this one has."""
        peers = self.shared_sources.peers
        if peers is not None and is_digest(ref):
            peers.release(upstream, Digest(ref))

    @property
    def is_scarce(self) -> bool:
        """The rest of the rate limit is reserved for content that clients request."""
        return policy.is_scarce(self.rule, self.upstream.budget.share)

    def rule_for(self, tag: Tag) -> Rule:
        """Return the rule for one tag."""
        return self.rule.for_tag(tag, self.upstream.budget.share)

    def max_age(self, tag: Tag, directive: CacheDirective) -> MaxAge:
        """Return how old another replica's answer about a tag may be."""
        if directive is CacheDirective.REVALIDATE:
            return NOW
        rule, age = self.rule_for(tag), time.monotonic() - self.since
        return MaxAge(rule.tag_ttl, min(rule.negative_ttl, age))

    def seconds_trusted(self, tag: Tag) -> float:
        """Return the seconds for which a tag is served after a check without another one."""
        rule = self.rule_for(tag)
        return math.inf if rule.offline else rule.tag_ttl + rule.stale_while_revalidate


class NotConfigured(NameUnknown, KeyError):
    """An upstream that is not in the configuration, or no longer."""


class Origins(Mapping[str, Origin]):
    """The configured upstreams by name. ``replace`` changes them for every user."""

    def __init__(self, sources: Mapping[str, Origin]) -> None:
        self._sources = dict(sources)

    def __getitem__(self, name: str) -> Origin:
        """Return an upstream. Raises ``NotConfigured``, which is a ``RegistryError``."""
        source = self._sources.get(name)
        if source is None:
            raise NotConfigured(f"upstream {name} is not configured")
        return source

    def __iter__(self) -> Iterator[str]:
        return iter(self._sources)

    def __len__(self) -> int:
        return len(self._sources)

    def replace(self, sources: Mapping[str, Origin]) -> None:
        """Replace the upstreams."""
        self._sources = dict(sources)
