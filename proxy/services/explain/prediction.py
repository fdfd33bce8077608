"""Predicts the result of a pull now and offline. Sends no request to a registry."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Final, assert_never

from proxy.core import policy
from proxy.core.errors import NotFound, UpstreamUnavailable
from proxy.core.names import Digest, Tag, Target
from proxy.core.policy import Action
from proxy.core.records import Clock
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origin
from proxy.repository.tags import Tags
from proxy.services.explain.facts import Answer, Held, Offline, Pull
from proxy.services.explain.freshness import TagState
from proxy.services.explain.holding import ATTESTATION
from proxy.services.inventory import State
from proxy.upstream.circuit_breaker import CircuitState

HEAD: Final = "HEAD of the manifest"
GET: Final = "GET of the manifest"


class PullPredictor:
    """Predicts pulls."""

    def __init__(
        self, manifests: Manifests, tags: Tags, sources: Mapping[str, Origin], clock: Clock
    ) -> None:
        self._manifests = manifests
        self._tags = tags
        self._sources = sources
        self._clock = clock

    async def of_tag(self, target: Target, tag: Tag, tag_state: TagState, held: Held) -> Pull:
        """Return the result of a pull of a tag now."""
        origin, record = self._sources[target.upstream], tag_state.record
        if tag_state.as_of is not None and held.digest is not None:
            pull = await self.of_digest(target, held.digest, held)
            return replace(pull, because=f"as_of shows the past; {pull.because}")
        if tag_state.problem is not None:
            return Pull(Answer.REFUSE, tag_state.problem)
        if origin.rule.offline:
            return _offline(held, origin)
        if record is None:
            return await self._fetch(target, tag, "the cache does not know this tag")
        action = policy.decide(record.checked_at, origin.rule_for(tag), self._clock())
        match action:
            case Action.SERVE:
                return self._copy(Pull(Answer.SERVE, "the tag is fresh"), tag_state, held)
            case Action.SERVE_THEN_CHECK:
                late = "tag_ttl is over, stale_while_revalidate is not"
                return self._copy(Pull(Answer.SERVE_THEN_CHECK, late, (HEAD,)), tag_state, held)
            case Action.CHECK | Action.MISS:
                return self._check(target, tag, record.checked_at, held)
            case _:
                assert_never(action)

    async def of_digest(self, target: Target, digest: Digest, held: Held) -> Pull:
        """Return the result of a pull by digest now."""
        origin = self._sources[target.upstream]
        if origin.rule.offline:
            return _offline(held, origin)
        if held.state is State.ABSENT:
            return await self._fetch(target, digest, "the manifest is not in the cache")
        if not held.is_linked:
            return _confirm(held)
        if self._tags.cool_downs.is_allowed(target, digest, digest):
            return Pull(Answer.SERVE, "a digest never changes")
        return Pull(Answer.SERVE, "a digest never changes, but the pull first checks min_age")

    async def _fetch(self, target: Target, ref: str, because: str) -> Pull:
        """Return the result of a pull of a manifest that is not held."""
        origin = self._sources[target.upstream]
        try:
            await self._manifests.absences.refuse(target, ref)
        except NotFound as error:
            said = f"{error.message}; that is remembered for negative_ttl"
            return Pull(Answer.REFUSE, said)
        if _fails(origin):
            return Pull(Answer.REFUSE, f"{because}, and the registry fails")
        return Pull(Answer.FETCH, because, (GET,))

    def _copy(self, pull: Pull, tag_state: TagState, held: Held) -> Pull:
        """Return ``pull``, adapted to the parts of the image that are held."""
        if held.state is State.ABSENT:
            because = f"{pull.because}, but its manifest is not in the cache"
            return Pull(Answer.FETCH, because, (GET,))
        if not held.is_linked:
            return _confirm(held)
        if tag_state.is_open:
            because = f"{pull.because}; the time of its creation decides if min_age holds it back"
            return replace(pull, because=because)
        return pull

    def _check(self, target: Target, tag: Tag, checked_at: float, held: Held) -> Pull:
        """Return the result of a pull of a tag that is no longer fresh."""
        origin = self._sources[target.upstream]
        rule, now = origin.rule_for(tag), self._clock()
        if _fails(origin):
            failure = policy.on_failure(checked_at, rule, now, UpstreamUnavailable(""))
            if failure is Action.SERVE and held.state is not State.ABSENT:
                return Pull(Answer.STALE, "the registry fails, and stale_if_error is not over")
            return Pull(Answer.REFUSE, "the registry fails, and no good copy may replace it")
        if held.state is State.ABSENT:
            return Pull(Answer.CHECK, "the tag is stale, and its manifest is gone", (HEAD, GET))
        because = "the tag is no longer fresh"
        if origin.is_scarce:
            because += "; a newer image is not fetched: the rest of the rate limit is reserved"
        return Pull(Answer.CHECK, because, (HEAD,))


def _confirm(held: Held) -> Pull:
    because = f"{held.digest} is in the cache, but not known to belong to this repository"
    return Pull(Answer.CONFIRM, because, (HEAD,))


def _offline(held: Held, origin: Origin) -> Pull:
    found = offline_of(held, origin)
    return Pull(Answer.SERVE if found.is_served else Answer.REFUSE, f"offline: {found.because}")


def _fails(origin: Origin) -> bool:
    """Return True if the registry is not asked now because it fails."""
    return origin.upstream.circuit_breaker.state is CircuitState.OPEN


def offline_of(held: Held, origin: Origin) -> Offline:
    """Return the result of a pull offline: an image is served only if it is complete."""
    if held.state is State.ABSENT:
        return _unless(origin, "its manifest is not in the cache")
    if not held.is_linked:
        return _unless(origin, "the registry has not confirmed that this repository has it")
    images = [part for part in held.parts if part.platform != ATTESTATION]
    whole = [part for part in images if part.state is State.WHOLE]
    if held.state is not State.WHOLE or not whole:
        least = min((part.missing_pieces for part in images), default=1)
        return _unless(origin, f"{least} of its pieces {'is' if least == 1 else 'are'} missing")
    names = [part.platform for part in whole if part.platform is not None]
    return Offline(is_served=True, because=f"all of {', '.join(names) or 'it'} is in the cache")


def _unless(origin: Origin, problem: str) -> Offline:
    """Return that an image is not served, unless another source has the missing content."""
    named = " or ".join(sources_of(origin))
    because = f"{problem}; {named} may have it" if named else problem
    return Offline(is_served=False, because=because)


def sources_of(origin: Origin) -> list[str]:
    """Return the sources before the registry, in order."""
    bucket, peers = origin.shared_sources
    named = [f"the directory {fallback.path}" for fallback in origin.fallbacks]
    named += ["the bucket"] if bucket is not None else []
    return [*named, "other replicas"] if peers is not None else named
