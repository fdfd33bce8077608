"""Explains how Millpond handles an image, and why. Sends no request, and counts no use.

``facts`` are the parts of an explanation; ``holding``, ``freshness``, ``keeping`` and
``prediction`` gather them.
"""

from collections.abc import Mapping
from dataclasses import replace

from proxy.content.content import Content
from proxy.content.in_use import Feeds
from proxy.content.pins import Pins
from proxy.core.names import Image
from proxy.core.routing import Choice
from proxy.repository import Cache
from proxy.repository.origins import Origin
from proxy.services.explain.facts import Explanation, Pull, RateLimit, Registry, Route
from proxy.services.explain.freshness import freshness_of, tag_state_of
from proxy.services.explain.holding import held_of
from proxy.services.explain.keeping import KeepingExplainer
from proxy.services.explain.prediction import PullPredictor, offline_of, sources_of
from proxy.upstream.auth import scope_of


class Explainer:
    """Explains images."""

    def __init__(
        self,
        content: Content,
        cache: Cache,
        sources: Mapping[str, Origin],
        *,
        pins: Pins,
        feeds: Feeds,
    ) -> None:
        self._content = content
        self._tags = cache.tags
        self._sources = sources
        self._predictor = PullPredictor(cache.manifests, cache.tags, sources, content.clock)
        self._keeping = KeepingExplainer(content, pins, feeds)

    async def explain(self, image: Image, choice: Choice) -> Explanation:
        """Return the explanation of an image, whose target ``choice`` has chosen.

        Raises ``RegistryError`` if the upstream is no longer configured.
        """
        target = choice.target
        origin = self._sources[target.upstream]
        if image.tag is not None:
            tag_state = await tag_state_of(self._tags, target, image.tag)
            held = await held_of(self._content, target, tag_state.digest)
            freshness = freshness_of(origin, target, image.tag, tag_state)
            pull = await self._predictor.of_tag(target, image.tag, tag_state, held)
        else:
            assert image.digest is not None
            held = await held_of(self._content, target, image.digest)
            freshness = None
            pull = await self._predictor.of_digest(target, image.digest, held)
        return Explanation(
            image=str(image),
            route=Route(choice.by, choice.text, target.upstream, origin.url, target.repo),
            registry=_registry(origin, target.repo),
            held=held,
            freshness=freshness,
            pull=pull if origin.callers is None else _confirmed(pull),
            offline=offline_of(held, origin),
            keeping=await self._keeping.keeping(image, held.digest),
        )


def _confirmed(pull: Pull) -> Pull:
    """Return a pull from an upstream with ``credentials: caller``."""
    return replace(pull, because=f"{pull.because}; the registry has to confirm each client")


def _registry(origin: Origin, repository: str) -> Registry:
    upstream = origin.upstream
    budget, limit = upstream.budget, None
    if budget.share is not None and budget.limit is not None and budget.remaining is not None:
        limit = RateLimit(budget.limit, budget.remaining, origin.is_scarce)
    return Registry(
        scope=scope_of(repository),
        credentials=upstream.credentials.kind,
        offline=upstream.is_offline,
        offline_mode=upstream.offline.mode.value,
        circuit=upstream.circuit_breaker.state.name.lower(),
        rate_limit=limit,
        sources=tuple(sources_of(origin)),
    )
