"""Answers hits in a worker: content that is held, linked, fresh and allowed. The rest is relayed.

A request that a worker cannot answer is relayed before anything is counted or sent, errors
included: the main process answers it as if there were no workers.
"""

import asyncio
from dataclasses import replace
from typing import Final

import structlog
from aiohttp.web import BaseRequest, StreamResponse

from proxy.app.workers.cached_content import CachedContent
from proxy.app.workers.decisions import Decisions
from proxy.app.workers.relay import Relay
from proxy.core.errors import RegistryError, StorageError
from proxy.core.names import Digest, Kind, Route, Tag, Target, is_digest, parse_path
from proxy.core.policy import CacheDirective
from proxy.repository.results import BlobHead, ManifestHead
from proxy.runtime.metrics import Outcome
from proxy.web import replies
from proxy.web.blob import send_blob
from proxy.web.exchange import Exchange, RequestRecorder
from proxy.web.response_cache import ResponseCache

log = structlog.get_logger(__name__)
_KINDS: Final = (Kind.MANIFEST, Kind.BLOB)


class HitHandler:
    """Answers requests for manifests and blobs; ``relay`` answers all others."""

    def __init__(
        self,
        decisions: Decisions,
        content: CachedContent,
        relay: Relay,
        *,
        recorder: RequestRecorder,
        responses: ResponseCache,
    ) -> None:
        self._decisions = decisions
        self._content = content
        self._relay = relay
        self._recorder = recorder
        self._responses = responses

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request."""
        exchange = Exchange(request)
        try:
            answer = await self._answer(exchange)
        except (RegistryError, StorageError):  # nothing has been sent
            answer = None
        except asyncio.CancelledError:
            exchange.leave()
            self._record(exchange)
            raise
        except Exception:
            log.exception("request failed unexpectedly", path=request.path)
            return replies.failed(exchange, RegistryError("internal error"))
        if answer is None:
            return await self._relay.handle(request)
        assert exchange.decision is not None
        self._decisions.access.count(exchange.decision)
        self._record(exchange)
        self._responses.learn(exchange)
        return answer

    async def _answer(self, exchange: Exchange) -> StreamResponse | None:
        """Return the response, None if the main process has to answer.

        Raises ``RegistryError`` or ``StorageError`` in the latter case too.
        """
        request, decisions = exchange.request, self._decisions
        if request.method not in ("GET", "HEAD") or exchange.directive is not CacheDirective.ANY:
            return None
        route = exchange.route = parse_path(request.path)
        if route.kind not in _KINDS or route.as_of is not None or not decisions.is_current:
            return None
        if decisions.is_traced and "traceparent" in request.headers:
            return None
        if decisions.is_audited and route.kind is Kind.MANIFEST and not exchange.is_head:
            return None
        if decisions.redirects and route.kind is Kind.BLOB:
            return None
        target = decisions.router.resolve(route.repo, request.host, exchange.ns)
        principal = exchange.principal = await decisions.principal(request)
        if principal is None:
            return None
        exchange.decision = decisions.allows(principal, target)
        if exchange.decision is None:
            return None
        exchange.target = target
        exchange.client = decisions.limits.client(principal)
        exchange.counted = exchange.client or decisions.limits.counted(principal)
        if route.kind is Kind.BLOB:
            return await self._blob(exchange, target, Digest(route.ref))
        return await self._manifest(exchange, target, route)

    async def _manifest(
        self, exchange: Exchange, target: Target, route: Route
    ) -> StreamResponse | None:
        fresh, pointed = None, None
        digest = Digest(route.ref)
        if not is_digest(route.ref):
            tag = Tag(route.ref)
            record = await self._content.tag(target, tag)
            fresh = None if record is None else self._content.seconds_fresh(target, tag, record)
            if record is None or fresh is None:
                return None
            pointed = record.descriptor
            digest = pointed.digest
        found = await self._content.manifest(target, digest)
        if found is None:
            return None
        if not exchange.is_head:
            return replies.manifest(exchange, replace(found, fresh=fresh))
        descriptor = pointed or found.descriptor
        return replies.described(exchange, ManifestHead(descriptor, Outcome.HIT, fresh=fresh))

    async def _blob(
        self, exchange: Exchange, target: Target, digest: Digest
    ) -> StreamResponse | None:
        if exchange.is_head or replies.is_unmodified(exchange, digest):
            size = await self._content.size(target, digest)
            if size is None:
                return None
            return replies.sized(exchange, digest, BlobHead(size, Outcome.HIT))
        blob = await self._content.blob(target, digest)
        if blob is None:
            return None
        try:
            rest = self._relay.rest_of(exchange.request)
            return await send_blob(exchange, digest, blob, rest)
        finally:
            await blob.aclose()

    def _record(self, exchange: Exchange) -> None:
        if exchange.counted is not None:
            exchange.counted.requests += 1
        self._recorder.record(exchange)
