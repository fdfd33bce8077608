"""Policies: which images may be served, to all clients.

``rules`` decides by facts, ``images`` and ``signatures`` gather them through the cache, ``outline``
and ``cosign`` parse manifests and signatures. ``web`` calls ``Policies`` before it sends content:
three methods for requests, one for the response cache.
"""

import asyncio
import math
from collections.abc import Iterable
from enum import StrEnum
from functools import partial
from typing import Final, NamedTuple

import structlog
from cachetools import LRUCache

from proxy.content.content import Content
from proxy.core.errors import PolicyDenied, RegistryError, UpstreamTimeout
from proxy.core.names import Digest, Kind, Route, Target
from proxy.policies.images import Images
from proxy.policies.rules import ATTACHMENT_TAG, UNSIGNED, ImageFacts, Rule, objection
from proxy.policies.signatures import Keys, Signatures
from proxy.repository import Cache
from proxy.runtime.client_key import CLIENT_KEY
from proxy.runtime.executors import in_thread
from proxy.runtime.metrics import Metrics
from proxy.runtime.singleflight import SingleFlight

WATCH_SECONDS: Final = 2.0
"""How often the files of rules are looked at."""

CHECK_SECONDS: Final = 20.0
"""How long a request waits for a decision: clients wait 30 seconds for headers."""

NEGATIVE_SECONDS: Final = 30.0
"""How long a violation is remembered: an image may be signed meanwhile."""

_MAX_KNOWN: Final = 50_000

log = structlog.get_logger(__name__)


class Outcome(StrEnum):
    """The decision of a policy about a request."""

    ALLOWED = "allowed"
    DENIED = "denied"
    AUDITED = "audited"
    """The request would be denied, but the policy only audits."""
    FAILED = "failed"
    """There is no decision, because upstream failed."""


class _Violation(NamedTuple):
    rule: Rule
    reason: str


class _Verdict(NamedTuple):
    """The objections of rules, valid until a time of the clock (Unix seconds).

    ``client_key``: the client that upstream was asked as. Another one may find a signature where
    this one was refused.
    """

    violations: tuple[_Violation, ...]
    until: float
    client_key: object = None

    @property
    def denial(self) -> _Violation | None:
        """The first violation of a rule that denies."""
        return next((one for one in self.violations if not one.rule.policy.audit), None)


class Applied(NamedTuple):
    """A policy that covers a repository, and its decision about an image.

    ``is_denied`` None: unknown until a client pulls the image. ``is_trial``: the policy only logs
    its denials.
    """

    name: str
    demands: tuple[str, ...]
    is_trial: bool
    is_denied: bool | None
    reason: str | None


class Policies:
    """The current rules, and their decisions."""

    def __init__(self, cache: Cache, content: Content, metrics: Metrics) -> None:
        self._content = content
        self._metrics = metrics
        self._images = Images(cache, content)
        self._signatures = Signatures(cache, content, self._images)
        self._rules: tuple[Rule, ...] = ()
        self._covering: LRUCache[Target, tuple[Rule, ...]] = LRUCache(_MAX_KNOWN)
        self._verdicts: LRUCache[tuple[Target, Digest], _Verdict] = LRUCache(_MAX_KNOWN)
        self._judging: SingleFlight[_Verdict] = SingleFlight("judge image")
        self._revision = 0
        self._indexes = 0  # allowed so far

    async def close(self) -> None:
        """Cancel running work."""
        await self._judging.close()
        await self._signatures.close()

    def use(self, rules: tuple[Rule, ...]) -> None:
        """Decide by these rules from now on."""
        self._rules = rules
        self._forget()

    async def watch(self) -> None:
        """Read the files of rules when they change, until cancelled."""
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            if not self._rules:
                continue
            has_changed = await in_thread(partial(_refresh, self._rules))
            if has_changed:
                log.info("files of policies changed")
                self._forget()

    def is_allowed(self, target: Target, digest: Digest) -> bool:
        """Return True if content is known to violate nothing; never waits.

        False if that is not known: ``check_manifest`` and ``check_blob`` find out.
        """
        if not self._rules or not self._covered(target):
            return True
        known = self._known(target, digest)
        return known is not None and not known.violations

    def applied(self, target: Target, digest: Digest | None) -> list[Applied]:
        """Return the policies that cover a repository, with what is known of a manifest.

        Never waits, and counts nothing. ``digest`` None: it is not known which manifest it is.
        """
        named = ImageFacts(frozenset() if digest is None else frozenset({digest}))
        known = None if digest is None else self._known(target, digest)
        violated = {} if known is None else {one.rule.name: one.reason for one in known.violations}
        found = []
        for rule in self._covered(target):
            reason = objection(rule, named) or violated.get(rule.name)
            is_denied = None if reason is None and known is None else reason is not None
            sentence = None if reason is None else rule.sentence(reason)
            found.append(Applied(rule.name, rule.demands, rule.policy.audit, is_denied, sentence))
        return found

    def check_request(self, target: Target, route: Route) -> None:
        """Raise ``PolicyDenied`` for a manifest or blob that is denied whatever its content is."""
        if not self._rules or route.kind not in (Kind.MANIFEST, Kind.BLOB):
            return
        named = ImageFacts(frozenset({Digest(route.ref)}))
        for rule in self._covered(target):
            if not rule.policy.audit and (reason := objection(rule, named)) is not None:
                self._settle(target, route.ref, (rule,), (_Violation(rule, reason),))

    async def check_manifest(self, target: Target, digest: Digest, ref: str) -> str | None:
        """Return the trial that would deny a manifest, if any; ``ref`` is a tag or digest.

        Raises ``PolicyDenied`` if a rule denies it, and another ``RegistryError`` if upstream fails
        meanwhile.
        """
        if not self._rules or not (rules := self._covered(target)):
            return None
        known = self._known(target, digest)
        if known is None or (known.violations and ATTACHMENT_TAG.fullmatch(ref)):
            known = await self._judged(target, digest, ref)
        return self._settle(target, digest, rules, known.violations)

    async def check_blob(self, target: Target, digest: Digest) -> str | None:
        """Return the trial that would deny a blob, if any.

        Raises ``PolicyDenied`` if a rule denies it, or all held images that list it, and another
        ``RegistryError`` if upstream does not let it be found out.
        """
        if not self._rules or not (rules := self._covered(target)):
            return None
        known = self._known(target, digest) or await self._judge_blob(target, digest)
        return self._settle(target, digest, rules, known.violations)

    def _covered(self, target: Target) -> tuple[Rule, ...]:
        covering = self._covering.get(target)
        if covering is None:
            covering = tuple(rule for rule in self._rules if rule.covers(target))
            self._covering[target] = covering
        return covering

    def _known(self, target: Target, digest: Digest) -> _Verdict | None:
        verdict = self._verdicts.get((target, digest))
        if verdict is None or verdict.until <= self._content.clock():
            return None
        is_shared = not verdict.violations or verdict.client_key == CLIENT_KEY.get()
        return verdict if is_shared else None

    def _forget(self) -> None:
        self._revision += 1
        self._covering.clear()
        self._verdicts.clear()
        self._count(self._rules, Outcome.ALLOWED, 0)  # so that all policies are shown

    async def _judged(self, target: Target, digest: Digest, ref: str) -> _Verdict:
        """Return the verdict about a manifest, which concurrent requests share."""
        key = (self._revision, target, digest, ref)
        judge = partial(self._judge, target, digest, ref)
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                return await self._judging.do(key, judge)
        except TimeoutError:
            raise UpstreamTimeout(f"{target}@{digest} was not checked in time") from None

    async def _judge(self, target: Target, digest: Digest, ref: str) -> _Verdict:
        """Judge a manifest by the rules that deny, then by those that only audit.

        A verdict is cached only if its inputs did not change meanwhile: the rules, and for a
        violation the indexes above, whose signatures also cover the images that they list.
        """
        indexes = self._indexes
        revision, rules = self._revision, self._covered(target)
        denying = [rule for rule in rules if not rule.policy.audit]
        trial = [rule for rule in rules if rule.policy.audit]
        try:
            violations = await self._violations(target, digest, ref, denying)
        except RegistryError:
            self._count(denying, Outcome.FAILED)
            raise
        try:
            violations += await self._violations(target, digest, ref, trial)
        except RegistryError as error:
            self._count(trial, Outcome.FAILED)
            log.warning("not checked by policy", target=str(target), reason=error.message)
            return _Verdict(violations, self._content.clock())
        lasts = math.inf if not violations else self._content.clock() + NEGATIVE_SECONDS
        if not violations:
            await self._forget_below(target, digest)
        verdict = _Verdict(violations, lasts, CLIENT_KEY.get())
        if violations and indexes != self._indexes:
            return verdict
        return self._kept(target, digest, verdict, revision)

    def _kept(self, target: Target, digest: Digest, verdict: _Verdict, revision: int) -> _Verdict:
        """Return a verdict, and remember it unless the rules have changed since ``revision``."""
        if revision == self._revision:
            self._verdicts[target, digest] = verdict
        return verdict

    async def _forget_below(self, target: Target, digest: Digest) -> None:
        """Drop violations of images in an allowed index: its signatures cover them too."""
        below = await self._images.manifests(target, digest)
        self._indexes += bool(below)
        for child in below:
            known = self._verdicts.get((target, child))
            if known is not None and known.violations:
                del self._verdicts[target, child]

    async def _violations(
        self, target: Target, digest: Digest, ref: str, rules: list[Rule]
    ) -> tuple[_Violation, ...]:
        if not rules:
            return ()
        facts = await self._images.facts(target, digest, ref, rules)
        found = []
        for rule in rules:
            reason = objection(rule, facts)
            if reason is None and rule.key_files and not facts.is_attachment:
                keys = Keys.of(rule.keys)
                if not await self._signatures.is_signed(target, digest, keys):
                    reason = UNSIGNED
            if reason is not None:
                found.append(_Violation(rule, reason))
        return tuple(found)

    async def _judge_blob(self, target: Target, digest: Digest) -> _Verdict:
        """Judge a blob by itself, then by the held manifests that list it.

        One allowed manifest is sufficient. A manifest that is requested as a blob is judged as one.
        """
        revision = self._revision
        if await self._images.is_manifest(digest):
            return await self._judged(target, digest, digest)
        alone = ImageFacts(frozenset({digest}))
        own = tuple(
            _Violation(rule, reason)
            for rule in self._covered(target)
            if (reason := objection(rule, alone)) is not None
        )
        now = self._content.clock()
        denial, failure = None, None
        for parent in await self._images.parents(target, digest):
            try:
                verdict = await self._judged(target, parent, parent)
            except RegistryError as error:
                failure = failure or error
                continue
            if verdict.denial is None:
                lasts = now + NEGATIVE_SECONDS if own else math.inf
                verdict = _Verdict(own, lasts, CLIENT_KEY.get())
                return self._kept(target, digest, verdict, revision)
            denial = denial or verdict.denial
        if failure is not None:
            raise failure
        if denial is not None:
            own += (_Violation(denial.rule, f"only denied images list it: {denial.reason}"),)
        return _Verdict(own, now)

    def _settle(
        self, target: Target, ref: str, rules: Iterable[Rule], violations: Iterable[_Violation]
    ) -> str | None:
        """Count and log the decisions; return the first trial that would deny.

        Raises ``PolicyDenied`` for the first rule that denies.
        """
        violated = {one.rule.name: one for one in violations}
        denial: _Violation | None = None
        trial: str | None = None
        for rule in rules:
            violation = violated.get(rule.name)
            if violation is None:
                self._count([rule], Outcome.ALLOWED)
                continue
            fields = {"policy": rule.name, "target": str(target), "reference": ref}
            if rule.policy.audit:
                self._count([rule], Outcome.AUDITED)
                log.warning("policy would deny", **fields, reason=violation.reason)
                trial = trial or rule.name
            else:
                self._count([rule], Outcome.DENIED)
                log.warning("policy denies", **fields, reason=violation.reason)
                denial = denial or violation
        if denial is not None:
            rule = denial.rule
            raise PolicyDenied(rule.sentence(denial.reason), policy=rule.name)
        return trial

    def _count(self, rules: Iterable[Rule], outcome: Outcome, requests: int = 1) -> None:
        for rule in rules:
            self._metrics.policies[rule.name].decisions[outcome] += requests


def _refresh(rules: tuple[Rule, ...]) -> bool:
    changes = [rule.refresh() for rule in rules]
    return any(changes)
