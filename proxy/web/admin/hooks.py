"""``POST /-/hooks/<name>``: registries report pushed tags, which are checked at once.

A sender authenticates with the hook's secret; access rules do not apply. It can only cause checks
of tags that are known or chosen here, at the registry that the settings name.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import structlog
from aiohttp.web import BaseRequest, Response

from proxy.access.audit import AuditLog
from proxy.core.errors import (
    PathNotFound,
    RateLimited,
    RegistryError,
    StorageError,
    Unauthorized,
    Unsupported,
)
from proxy.core.names import Tag, Target
from proxy.core.records import Clock
from proxy.core.routing import Router
from proxy.runtime.executors import in_thread
from proxy.runtime.metrics import Metrics
from proxy.runtime.token_bucket import TokenBucket
from proxy.services.hooks.authentication import SentCredentials, is_authentic
from proxy.services.hooks.delivery import Delivery
from proxy.services.hooks.formats import FORMATS, read
from proxy.services.hooks.replays import Replays
from proxy.services.renewal import Renewal
from proxy.services.tag_queue import Key, TagQueue
from proxy.settings.hooks import Hook
from proxy.web import audit_events
from proxy.web.admin.body_reader import PER_SENDER, READING, BodyReader
from proxy.web.admin.documents import refusal, reply, unavailable

PATH: Final = "/-/hooks/"
MAX_TAGS: Final = 100
"""Maximum number of checked tags per delivery; registries report one or a few."""

PER_SECOND: Final = 5.0
BURST: Final = 300.0
"""Limits of checked tags per hook: per second in the long run, and in a burst."""

CHECKS: Final = 8
"""Maximum number of reported tags that are checked at the same time."""

PAUSE: Final = 5.0
"""Seconds between two checks of one tag."""

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class _Sender:
    """One hook: its settings, its rate, and the deliveries that it has made."""

    name: str
    hook: Hook
    bucket: TokenBucket
    replays: Replays = field(repr=False)

    def has_repeated(self, delivery: Delivery) -> bool:
        """Return True if the delivery, or each event in it, was accepted before."""
        events = [mention.event_id for mention in delivery.mentions]
        return any(map(self.replays.has, delivery.ids)) or (
            bool(events) and all(map(self.replays.has, events))
        )

    def remember(self, delivery: Delivery) -> None:
        """Record an accepted delivery: its sender repeats one that was not accepted."""
        self.replays.add(delivery.ids)
        self.replays.add(mention.event_id for mention in delivery.mentions)


class Hooks:
    """The configured hooks. Run ``check_forever`` as a task."""

    def __init__(
        self,
        renewal: Renewal,
        router: Router,
        metrics: Metrics,
        audit: AuditLog,
        clock: Clock,
    ) -> None:
        self._renewal = renewal
        self._router = router
        self._metrics = metrics
        self._audit = audit
        self._clock = clock
        self._senders: dict[str, _Sender] = {}
        self._queue = TagQueue(self._check, concurrency=CHECKS, pause=PAUSE)
        self._proven, self._unproven = BodyReader(READING), BodyReader(PER_SENDER)

    def use(self, hooks: Mapping[str, Hook]) -> None:
        """Accept deliveries for these hooks from now on; hooks that stay keep their state."""
        senders = {}
        for name, hook in hooks.items():
            known = self._senders.get(name)
            bucket = (
                TokenBucket(PER_SECOND, BURST, self._clock()) if known is None else known.bucket
            )
            replays = Replays(self._clock) if known is None else known.replays
            senders[name] = _Sender(name, hook, bucket, replays)
        self._senders = senders

    async def check_forever(self) -> None:
        """Check the reported tags until cancelled."""
        await self._queue.run()

    async def handle(self, request: BaseRequest) -> Response:
        """Answer one webhook."""
        sender = self._senders.get(request.path.removeprefix(PATH))
        if sender is None:
            return refusal(PathNotFound("there is no such hook; add it to the setting hooks"))
        try:
            return await self._receive(request, sender)
        except RegistryError as error:
            return self._refused(request, sender, error)
        except StorageError as error:
            return self._refused(request, sender, unavailable(request, error))

    def _refused(self, request: BaseRequest, sender: _Sender, error: RegistryError) -> Response:
        self._count(sender, _outcome(error))
        self._record(request, sender, error)
        log.info("a webhook was refused", hook=sender.name, reason=error.message)
        return refusal(error)

    async def _receive(self, request: BaseRequest, sender: _Sender) -> Response:
        """Verify, parse and queue one delivery. Raises ``RegistryError``."""
        if request.method != "POST":
            raise Unsupported(f"{request.method}: a webhook needs POST", allowed=("POST",))
        body = await self._verified(request, sender)
        delivery = read(sender.hook.format, request.headers, body)
        if delivery.is_ping:
            self._count(sender, "ignored")
            return reply({"ping": "the secret is right"})
        if sender.has_repeated(delivery):
            self._count(sender, "repeated")
            return reply({"repeated": True}, status=202)
        keys = await self._wanted(sender, delivery)
        self._admit(sender, keys)
        sender.remember(delivery)
        self._count(sender, "accepted" if keys else "ignored")
        if keys:
            self._record(request, sender, None)
        ignored = len(delivery.mentions) - len(keys)
        return reply({"checking": len(keys), "ignored": ignored}, status=202)

    async def _verified(self, request: BaseRequest, sender: _Sender) -> bytes:
        """Return the body of a sender that knows the secret. Raises ``Unauthorized``.

        The body is read only if the token is right, or if there is a signature. Senders with the
        token have places of their own, which no other client can take.
        """
        form, secrets = FORMATS[sender.hook.format], await _secrets(sender)
        shown = SentCredentials(request.headers, request.query.get("token", ""), b"", self._clock())
        if is_authentic(shown, form.tokens, secrets):
            return await self._proven.read(request)
        if form.signed_in not in request.headers:
            raise Unauthorized("the secret is missing or wrong")
        body = await self._unproven.read(request)
        if not is_authentic(shown._replace(body=body), form.signatures, secrets):
            raise Unauthorized("the secret is missing or wrong")
        return body

    async def _wanted(self, sender: _Sender, delivery: Delivery) -> list[Key]:
        """Return the reported tags that are known or chosen here, once each."""
        upstream, keys = sender.hook.registry, dict[Key, None]()
        mentions = [one for one in delivery.mentions if not sender.replays.has(one.event_id)]
        if len(mentions) > MAX_TAGS:
            log.warning("a webhook names too many tags", hook=sender.name, tags=len(mentions))
        for mention in mentions[:MAX_TAGS]:
            target = self._router.resolve(mention.repo, "", upstream)
            if await self._renewal.is_wanted(target, mention.tag):
                keys[target, mention.tag] = None
        return list(keys)

    def _admit(self, sender: _Sender, keys: list[Key]) -> None:
        """Queue tags. Raises ``RateLimited`` or ``Overloaded``; then none of them is queued."""
        now = self._clock()
        if (wait := sender.bucket.seconds_until(len(keys), now)) > 0:
            raise RateLimited("this hook reports too many tags; retry later", retry_after=wait)
        self._queue.add(keys)
        sender.bucket.take(len(keys), now)

    async def _check(self, target: Target, tag: Tag) -> None:
        found = await self._renewal.check(target, tag)
        self._metrics.cache.hook_checks[found] += 1
        log.info("a reported tag was checked", image=f"{target}:{tag}", outcome=found.value)

    def _count(self, sender: _Sender, outcome: str) -> None:
        self._metrics.hooks[sender.name].deliveries[outcome] += 1

    def _record(self, request: BaseRequest, sender: _Sender, failure: RegistryError | None) -> None:
        if self._audit.is_on:
            self._audit.record(audit_events.of_webhook(request, sender.name, failure))


async def _secrets(sender: _Sender) -> list[bytes]:
    """Return the secrets of a hook, none if the file cannot be read."""
    file = sender.hook.secret_file
    try:
        text = await in_thread(file.read_bytes)
    except OSError as error:
        log.error("the secret of a hook cannot be read", hook=sender.name, reason=error.strerror)
        return []
    return [line.strip() for line in text.splitlines() if line.strip()]


def _outcome(error: RegistryError) -> str:
    """Return the outcome by which a failure is counted."""
    match error.status:
        case 401:
            return "refused"
        case 429 | 503:
            return "limited"
        case _:
            return "invalid"
