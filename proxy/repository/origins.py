"""The configured upstreams, each with the rule that holds for it."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Final, NamedTuple

from proxy.core import policy
from proxy.core.errors import NameUnknown
from proxy.core.names import Tag
from proxy.core.policy import Rule
from proxy.core.sources import Source
from proxy.core.tag_rules import TagRules
from proxy.storage.fallback import FallbackDirectory
from proxy.upstream.registry import Upstream

NO_TAG_RULES: Final = TagRules()


class CallerTimes(NamedTuple):
    """Seconds that a client counts as confirmed: normally, and while the registry fails."""

    ttl: float
    stale: float


class Origin(NamedTuple):
    """One upstream, its address, and how old its answers may be.

    ``version`` differs between two configurations of an upstream, because content that is absent
    under one may exist under the other. ``fallbacks`` are read before the registry is asked.
    ``callers`` None: the registry is asked with the same login for all clients.
    """

    upstream: Upstream
    online_rule: Rule
    version: int = 0
    url: str = ""
    fallbacks: tuple[FallbackDirectory, ...] = ()
    callers: CallerTimes | None = None
    tag_rules: TagRules = NO_TAG_RULES

    @property
    def rule(self) -> Rule:
        """How old its answers may be now: offline, any age will do."""
        if not self.upstream.is_offline:
            return self.online_rule
        return replace(self.online_rule, offline=True)

    @property
    def local_sources(self) -> list[Source]:
        """Where blobs come from without the registry, in order."""
        return [*self.fallbacks]

    @property
    def blob_sources(self) -> list[Source]:
        """Where blobs come from, in order: no registry if offline."""
        return self.local_sources if self.rule.offline else [*self.local_sources, self.upstream]

    @property
    def is_scarce(self) -> bool:
        """What is left of the rate limit is reserved for content that clients ask for."""
        return policy.is_scarce(self.rule, self.upstream.budget.share)

    def rule_for(self, tag: Tag) -> Rule:
        """Return the rule for one tag."""
        return self.rule.for_tag(tag, self.upstream.budget.share)

    def seconds_trusted(self, tag: Tag) -> float:
        """Return for how long a tag is served after a check before upstream is asked again."""
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
        """Hold these upstreams instead."""
        self._sources = dict(sources)
