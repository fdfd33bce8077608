"""The registry API under ``/v2/``: parse, resolve, check access, ask the cache, send.

``README.md`` describes the path of a request. Every ``RegistryError`` becomes HTTP only here.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Final, NamedTuple, assert_never

import structlog
from aiohttp.web import BaseRequest, Response, StreamResponse

from proxy.access.principals import OPERATOR, Principal
from proxy.access.rules import Action
from proxy.core.errors import PaginationInvalid, RegistryError, Unauthorized, Unsupported
from proxy.core.names import Digest, Kind, Route, Tag, Target, is_digest, parse_path
from proxy.core.policy import CacheDirective
from proxy.core.routing import Router
from proxy.repository import Cache
from proxy.repository.results import Manifest, ManifestHead
from proxy.runtime import request_ids
from proxy.runtime.metrics import Outcome
from proxy.upstream import hops
from proxy.upstream.registry import PAGE_KEYS
from proxy.web import replies, span_attributes
from proxy.web.blob import send_blob
from proxy.web.exchange import Exchange, RequestRecorder
from proxy.web.gate import Gate
from proxy.web.redirects import may_redirect
from proxy.web.response_cache import ResponseCache

MAX_PAGE: Final = 10_000

Identify = Callable[[BaseRequest], Awaitable[Principal]]

log = structlog.get_logger(__name__)


class Registry:
    """Answers ``/v2/``."""

    def __init__(
        self,
        router: Router,
        cache: Cache,
        *,
        gate: Gate,
        recorder: RequestRecorder,
        responses: ResponseCache,
    ) -> None:
        self._router = router
        self._cache = cache
        self._gate, self._policies = gate, gate.policies
        self._recorder = recorder
        self._responses = responses

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came over TCP. Raises nothing but cancellation."""
        return await self._handle(request, self._gate.identify)

    async def handle_trusted(self, request: BaseRequest) -> StreamResponse:
        """Answer one request that came through the admin socket."""
        return await self._handle(request, _operator)

    async def _handle(self, request: BaseRequest, identify: Identify) -> StreamResponse:
        exchange = Exchange(request)
        request_ids.use(exchange.request_id)
        above, identify = await self._parent(request, identify)
        with self._recorder.tracer.request(span_attributes.name(request), above) as span:
            try:
                return await self._respond(exchange, identify)
            finally:
                if span is not None:
                    span.add(span_attributes.attributes(exchange))
                    if exchange.status >= 500:
                        span.fail(exchange.code or "")

    async def _parent(
        self, request: BaseRequest, identify: Identify
    ) -> tuple[Mapping[str, str], Identify]:
        """Return the headers that name the trace above, and what identifies the client.

        Anybody can send a ``traceparent`` that demands sampling, and choose a trace id that every
        ratio samples. So it counts only from known clients, who are identified before the span
        begins.
        """
        if "traceparent" not in request.headers:
            return {}, identify
        found = await Identified.by(identify, request)
        above = request.headers if self._gate.is_known(request, found.principal) else {}
        return above, found.again

    async def _respond(self, exchange: Exchange, identify: Identify) -> StreamResponse:
        request, revision = exchange.request, self._router.revision
        try:
            if self._recorder.audit.is_nearly_full:
                await self._recorder.audit.wait_for_room()
            return await self._answer(exchange, identify)
        except RegistryError as error:
            if isinstance(error, Unauthorized):
                error.challenge = self._gate.challenge(exchange)
            return replies.failed(exchange, error)
        except asyncio.CancelledError:
            exchange.leave()
            raise
        except Exception:
            log.exception("request failed unexpectedly", path=request.path)
            return replies.failed(exchange, RegistryError("internal error"))
        finally:
            self._recorder.record(exchange)
            if revision == self._router.revision:  # else the name may resolve to another target
                self._responses.learn(exchange)

    async def _answer(self, exchange: Exchange, identify: Identify) -> StreamResponse:
        request = exchange.request
        if request.method not in ("GET", "HEAD"):
            raise Unsupported(f"{request.method}: this registry is a read-only cache")
        route = exchange.route = parse_path(request.path)
        principal = exchange.principal = await identify(request)
        await self._gate.admit(exchange, principal)
        if route.kind is Kind.BASE:
            self._gate.greet(exchange, principal)
            return replies.base(exchange)
        if route.kind is Kind.CATALOG:
            self._gate.enforce(exchange, principal, Action.CATALOG)
            return await self._catalog(exchange, principal)
        target = self._gate.resolve(exchange, principal)
        exchange.is_offline = self._cache.manifests.is_offline(target)
        self._policies.check_request(target, route)
        via = request.headers.getall("Via", ())
        revalidates = exchange.directive is CacheDirective.REVALIDATE
        with hops.continuing(via, revalidates=revalidates):
            async with self._gate.callers.asking(principal, target, route):
                return await self._content(exchange, target, route)

    async def _content(self, exchange: Exchange, target: Target, route: Route) -> StreamResponse:
        match route.kind:
            case Kind.MANIFEST if exchange.is_head:
                ref = await self._ref(target, route)
                return replies.described(exchange, await self._head(exchange, target, ref))
            case Kind.MANIFEST:
                ref = await self._ref(target, route)
                return replies.manifest(exchange, await self._get(exchange, target, ref))
            case Kind.BLOB:
                return await self._blob(exchange, target, Digest(route.ref))
            case Kind.TAGS:
                return await self._tags(exchange, target)
            case Kind.REFERRERS:
                return await self._referrers(exchange, target, Digest(route.ref))
            case Kind.BASE | Kind.CATALOG:
                raise AssertionError("not about a repository")
            case _:
                assert_never(route.kind)

    async def _ref(self, target: Target, route: Route) -> str:
        """Return the tag or digest of a request; for a tag of the past, its digest then."""
        if route.as_of is None or is_digest(route.ref):
            return route.ref
        return await self._cache.tags.past.at(target, Tag(route.ref), route.as_of)

    async def _get(self, exchange: Exchange, target: Target, ref: str) -> Manifest:
        if is_digest(ref):
            manifest = await self._cache.manifests.get(target, Digest(ref), exchange.directive)
        else:
            manifest = await self._cache.tags.get(target, Tag(ref), exchange.directive)
        # A stale answer, also one from a fallback directory, means that upstream fails: a prefetch
        # would only add requests. Clients still get each blob that a directory has when they ask.
        digest = manifest.descriptor.digest
        if ref == digest:
            await self._cache.tags.cool_downs.check(target, digest)
        exchange.policy = await self._policies.check_manifest(target, digest, ref)
        if manifest.outcome is Outcome.MISS:
            self._cache.prefetcher.begin(target, manifest.children)
        self._confirm(target, manifest)
        return manifest

    async def _head(self, exchange: Exchange, target: Target, ref: str) -> ManifestHead:
        if is_digest(ref):
            described = await self._cache.manifests.head(target, Digest(ref), exchange.directive)
        else:
            described = await self._cache.tags.head(target, Tag(ref), exchange.directive)
        digest = described.descriptor.digest
        if ref == digest:
            await self._cache.tags.cool_downs.check(target, digest)
        exchange.policy = await self._policies.check_manifest(target, digest, ref)
        self._confirm(target, described)
        return described

    def _confirm(self, target: Target, answer: Manifest | ManifestHead) -> None:
        """Start to confirm that upstream's repository has what the manifest lists.

        This repeats with each check of a tag, which compensates for a check that ended early.
        """
        if answer.outcome is not Outcome.HIT and answer.warning is None:
            self._cache.link_checks.begin(target, answer.descriptor.digest)

    async def _blob(self, exchange: Exchange, target: Target, digest: Digest) -> StreamResponse:
        exchange.policy = await self._policies.check_blob(target, digest)
        if exchange.is_head or replies.is_unmodified(exchange, digest):
            sized = await self._cache.blobs.head(target, digest, exchange.directive)
            return replies.sized(exchange, digest, sized)
        if (url := await self._redirect(exchange, target, digest)) is not None:
            return replies.redirected(exchange, digest, url)
        async with nullcontext() if exchange.client is None else exchange.client.download():
            blob = await self._cache.small.get(target, digest, exchange.directive)
            try:
                return await send_blob(exchange, digest, blob, self._cache.blobs)
            finally:
                await blob.aclose()

    async def _redirect(self, exchange: Exchange, target: Target, digest: Digest) -> str | None:
        """Return the URL of a blob in the bucket; None if Millpond has to send it.

        Limits for clients apply only to blobs that Millpond sends.
        """
        redirects, client = self._cache.redirects, exchange.client
        if redirects is None or (client is not None and client.is_paced):
            return None
        if not may_redirect(exchange.request, redirects.public_host):
            return None
        return await redirects.url(target, digest)

    async def _tags(self, exchange: Exchange, target: Target) -> Response:
        assert exchange.route is not None
        name = exchange.route.repo
        page = await self._cache.listings.tags(target, _page(exchange), exchange.directive)
        document: dict[str, object] = {"name": name, "tags": page.names}
        return replies.listed(exchange, page, document, f"/v2/{name}/tags/list")

    async def _catalog(self, exchange: Exchange, principal: Principal) -> Response:
        exchange.is_offline = self._cache.listings.is_offline
        principal = replace(principal, scopes=None)  # of the user, not of one token
        page = await self._cache.listings.repositories(
            _page(exchange), partial(self._gate.may_see, principal)
        )
        return replies.listed(exchange, page, {"repositories": page.names}, "/v2/_catalog")

    async def _referrers(self, exchange: Exchange, target: Target, subject: Digest) -> Response:
        wanted = exchange.request.query.get("artifactType") or None
        found = await self._cache.referrers.get(target, subject, wanted, exchange.directive)
        return replies.referrers(exchange, found)


class Identified(NamedTuple):
    """The client of a request, or why it is not identified."""

    principal: Principal | None
    failure: Exception | None = None

    @classmethod
    async def by(cls, identify: Identify, request: BaseRequest) -> "Identified":
        """Identify the client once. Raises nothing but cancellation."""
        try:
            return cls(await identify(request))
        except Exception as error:  # ``again`` raises it
            return cls(None, error)

    async def again(self, _: BaseRequest) -> Principal:
        """Return the client, or raise what identifying it raised."""
        if self.failure is not None:
            raise self.failure
        assert self.principal is not None
        return self.principal


async def _operator(_: BaseRequest) -> Principal:
    return OPERATOR


def _page(exchange: Exchange) -> dict[str, str]:
    """Return the pagination parameters of a query. Raises ``PaginationInvalid``."""
    query = exchange.request.query
    page = {name: query[name] for name in PAGE_KEYS if query.get(name)}
    if (n := page.get("n")) is not None:
        if not (n.isascii() and n.isdecimal() and len(n) < 10):
            raise PaginationInvalid("n must be a number, 0 or more")
        page["n"] = str(min(int(n), MAX_PAGE))
    return page
