"""Decisions of a worker by the current settings; the main process makes all others.

Some decisions need state that only the main process has: failed logins, the used budgets of
clients, confirmations by upstreams, and verdicts about signatures.
"""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp.web import BaseRequest

from proxy.access.control import AccessControl, Policy
from proxy.access.credentials import Bearer, parse
from proxy.access.identity import AnonymousIdentifier
from proxy.access.limits import ClientLimits
from proxy.access.principals import Principal
from proxy.access.rules import Action, Decision
from proxy.app import tag_rules
from proxy.app.identity import KEYS_FILE
from proxy.app.issuers import fetch_for
from proxy.app.upstreams import freshness_rule
from proxy.app.workers.channel import ActiveSettings
from proxy.core import policy
from proxy.core.errors import Unauthorized
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import TagRecord
from proxy.core.routing import Router
from proxy.index.generations import Generations
from proxy.policies.rules import compile_rules
from proxy.runtime.metrics import Metrics
from proxy.settings import Settings
from proxy.settings.access import Access, Limits
from proxy.upstream.offline import OfflineMode
from proxy.web.forwarded import TrustedProxies
from proxy.web.gate import presented

if TYPE_CHECKING:
    from proxy.access.authenticator import Authenticator
    from proxy.access.own_tokens import OwnTokens

_MAX_KNOWN: Final = 50_000


class Decisions:
    """Decides by the settings of ``use`` while they are in force."""

    def __init__(self, active: ActiveSettings, metrics: Metrics, generations: Generations) -> None:
        """Build the parts of the settings. Raises ``ConfigError`` if they have become invalid."""
        settings = active.settings
        self._metrics = metrics
        self._generations = generations
        self._own: OwnTokens | None = None
        self._authenticator: Authenticator | None = None
        self.router: Final = Router(settings)
        self.trusted: Final = TrustedProxies(settings.access.trusted_proxies)
        self.access: Final = AccessControl(
            self._policy(settings), AnonymousIdentifier(), metrics.cache
        )
        self.limits: Final = ClientLimits(_unlimited(settings.access), metrics.limits)
        self.use(active)

    def use(self, active: ActiveSettings) -> None:
        """Decide by these settings from now on. Raises ``ConfigError``, and then is not current."""
        settings = active.settings
        self._settings = settings
        self._switched = active.switched
        self.router.update(settings)
        self.trusted.use(settings.access.trusted_proxies)
        self.access.use(self._policy(settings))
        self.limits.use(_unlimited(settings.access))
        self._freshness = {
            name: replace(
                freshness_rule(settings, name),
                offline=settings.offline_mode(name) != OfflineMode.NEVER,
            )
            for name in settings.upstreams
        }
        self._policies = compile_rules(settings.policies, self.router.parse_selector)
        self._ours: dict[Target, bool] = {}
        for name in settings.upstreams:
            self._metrics.add(name)
        if settings.access.is_configured:
            self._identify(settings.access, settings.storage.path)
        self._number = active.number

    async def close(self) -> None:
        """End work in the background."""
        if self._authenticator is not None:
            await self._authenticator.close()

    @property
    def is_current(self) -> bool:
        """The settings are those that the main process has in force."""
        return self._number == self._generations.settings

    @property
    def is_audited(self) -> bool:
        """Each pull is recorded before it is answered, which the main process does."""
        return self._settings.access.is_configured or self._settings.access.audit_file is not None

    @property
    def is_traced(self) -> bool:
        """Requests that are part of a trace go to the main process, which sends spans."""
        return self._settings.tracing.endpoint is not None

    @property
    def redirects(self) -> bool:
        """Clients may be sent to the bucket for a blob, which the main process signs."""
        bucket = self._settings.storage.bucket
        return bucket is not None and bucket.redirect is not None

    async def principal(self, request: BaseRequest) -> Principal | None:
        """Return the principal of a request; None if the main process has to identify it."""
        sent = presented(request)
        sealed = self.access.sealed(sent.authorization)
        known = self.access.recognise(sealed, sent.address, sent.certificate)
        credentials = parse(sent.authorization) if known is None else None
        if known is not None or self._own is None or not isinstance(credentials, Bearer):
            return known
        if not self._own.is_own(credentials.token):
            return None
        try:
            return await self.access.identify(*sent)
        except Unauthorized:
            return None

    def allows(self, principal: Principal, target: Target) -> Decision | None:
        """Return the decision that lets a client pull, None if the main process has to answer."""
        if not self.may_answer(target):
            return None
        decision = self.access.preview(principal, Action.PULL, target)
        return decision if decision.is_allowed else None

    def may_answer(self, target: Target) -> bool:
        """Return True if requests for a repository do not need the main process."""
        return self._number == self._generations.settings and self._is_ours(target)

    def is_allowed(self, target: Target, digest: Digest) -> bool:
        """Return ``may_answer``, for the response cache: no policy covers the repository then."""
        del digest
        return self.may_answer(target)

    def is_needed(self, target: Target) -> bool:
        """Return False: workers never answer for upstreams with ``credentials: caller``."""
        del target
        return False

    def is_confirmed(self, principal: Principal, target: Target) -> bool:
        """Return ``may_answer``: there is nothing to confirm."""
        del principal
        return self.may_answer(target)

    def is_offline(self, target: Target) -> bool:
        """Return True if an image is served only if all of it is held."""
        return self._freshness[target.upstream].offline

    def seconds_fresh(
        self, target: Target, tag: Tag, record: TagRecord, now: float
    ) -> float | None:
        """Return for how long a tag needs no check at a time (Unix seconds); None if it does.

        A rate limit that is nearly used up lets the main process serve it for longer.
        """
        rule = self._freshness[target.upstream].for_tag(tag, None)
        if rule.offline or policy.decide(record.checked_at, rule, now) is not policy.Action.SERVE:
            return None
        return policy.seconds_fresh(record.checked_at, rule, now)

    def _is_ours(self, target: Target) -> bool:
        """Return True if no setting requires the main process for a repository."""
        known = self._ours.get(target)
        if known is None:
            if len(self._ours) >= _MAX_KNOWN:
                self._ours.clear()
            upstream = self._settings.upstreams.get(target.upstream)
            known = self._ours[target] = (
                upstream is not None
                and not upstream.asks_as_caller
                and self._settings.access.limits == Limits()
                and self._is_plain(target.upstream)
                and not any(rule.covers(target) for rule in self._policies)
            )
        return known

    def _is_plain(self, upstream: str) -> bool:
        """Return True if no tag is held back or in the past, and upstream is always asked."""
        rules = tag_rules.build_tag_rules(upstream, self._settings.upstreams[upstream])
        is_online = self._settings.offline_mode(upstream) == OfflineMode.NEVER
        is_online = is_online and upstream not in self._switched
        return is_online and not rules.has_cool_downs and not rules.has_past_times

    def _policy(self, settings: Settings) -> Policy:
        return Policy.of(settings.access, Router(settings).parse_selector)

    def _identify(self, access: Access, directory: Path) -> None:
        """Identify clients by our own tokens, certificates and addresses."""
        from proxy.access.authenticator import Authenticator  # noqa: PLC0415 - as ``identity`` does
        from proxy.access.callers import Callers  # noqa: PLC0415
        from proxy.access.keys import Keys  # noqa: PLC0415
        from proxy.access.own_tokens import OwnTokens  # noqa: PLC0415
        from proxy.access.sources import open_sources  # noqa: PLC0415

        self._own = OwnTokens(Keys(directory / KEYS_FILE), access.token_ttl)
        sources = open_sources(access.model_copy(update={"oidc": ()}), fetch_for)
        self._authenticator = Authenticator(sources, self._own, Callers())
        self.access.identify_with(self._authenticator)


def _unlimited(access: Access) -> Access:
    """Return access with which clients are only counted, if they are."""
    return access.model_copy(update={"limits": Limits()})
