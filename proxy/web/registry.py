"""The registry under ``/v2/``: parse, route, ask the cache, send. The story is in README.md.

Errors of every room become HTTP in one place here.
"""

import asyncio
import json
from typing import Final, assert_never
from urllib.parse import urlencode

import structlog
from aiohttp.web import BaseRequest, Response, StreamResponse

from proxy.cache import Cache
from proxy.cache.answers import Described, Manifest, Sized, TagList
from proxy.errors import PaginationInvalid, RegistryError, Unsupported
from proxy.logs import RequestLog
from proxy.metrics import Metrics
from proxy.names import Digest, Kind, Tag, Target, is_digest, parse_path
from proxy.records import Descriptor
from proxy.routing import Router
from proxy.web.blob import blob_headers, send_blob
from proxy.web.exchange import Exchange

MAX_PAGE: Final = 10_000

log = structlog.get_logger(__name__)


class Registry:
    """Answers ``/v2/``."""

    def __init__(
        self,
        router: Router,
        cache: Cache,
        *,
        metrics: Metrics,
        request_log: RequestLog,
    ) -> None:
        self._router = router
        self._cache = cache
        self._metrics = metrics
        self._request_log = request_log

    async def handle(self, request: BaseRequest) -> StreamResponse:
        """Answer one request. Raises nothing but cancellation."""
        exchange = Exchange(request)
        try:
            return await self._answer(exchange)
        except RegistryError as error:
            return _failed(exchange, error)
        except asyncio.CancelledError:
            exchange.left = True
            raise
        except Exception:
            log.exception("a request failed in an unforeseen way", path=request.path)
            return _failed(exchange, RegistryError("internal error"))
        finally:
            exchange.account(self._metrics, self._request_log)

    async def _answer(self, exchange: Exchange) -> StreamResponse:
        request = exchange.request
        if request.method not in ("GET", "HEAD"):
            raise Unsupported(f"{request.method}: this registry is a cache and is only read")
        route = exchange.route = parse_path(request.path)
        if route.kind is Kind.BASE:
            return Response(
                body=b"{}", headers=exchange.headers({"Content-Type": "application/json"})
            )
        target = self._router.resolve(route.repo, request.host, exchange.ns)
        exchange.target = target
        match route.kind:
            case Kind.MANIFEST if exchange.is_head:
                return _described(exchange, await self._described(exchange, target, route.ref))
            case Kind.MANIFEST:
                return _manifest(exchange, await self._manifest(exchange, target, route.ref))
            case Kind.BLOB if exchange.is_head:
                digest = Digest(route.ref)
                sized = await self._cache.blobs.head(target, digest, exchange.wish)
                return _sized(exchange, digest, sized)
            case Kind.BLOB:
                return await self._blob(exchange, target, Digest(route.ref))
            case Kind.TAGS:
                return await self._page(exchange, target)
            case _:
                assert_never(route.kind)

    async def _manifest(self, exchange: Exchange, target: Target, ref: str) -> Manifest:
        if is_digest(ref):
            return await self._cache.manifests.get(target, Digest(ref), exchange.wish)
        return await self._cache.tags.get(target, Tag(ref), exchange.wish)

    async def _described(self, exchange: Exchange, target: Target, ref: str) -> Described:
        if is_digest(ref):
            return await self._cache.manifests.head(target, Digest(ref), exchange.wish)
        return await self._cache.tags.head(target, Tag(ref), exchange.wish)

    async def _blob(self, exchange: Exchange, target: Target, digest: Digest) -> StreamResponse:
        blob = await self._cache.blobs.get(target, digest, exchange.wish)
        try:
            return await send_blob(exchange, digest, blob)
        finally:
            await blob.aclose()

    async def _page(self, exchange: Exchange, target: Target) -> Response:
        query = exchange.request.query
        text = query.get("n")
        if text is not None and not (text.isascii() and text.isdecimal() and len(text) < 10):
            raise PaginationInvalid("n is not a count")
        n = None if text is None else min(int(text), MAX_PAGE)
        last = query.get("last") or None
        listed = await self._cache.listings.page(target, n, last)
        return _listed(exchange, listed, n)


def _manifest(exchange: Exchange, manifest: Manifest) -> Response:
    exchange.outcome = manifest.outcome
    exchange.sent = len(manifest.body)
    headers = _manifest_headers(manifest.descriptor, manifest.warning)
    return Response(body=manifest.body, headers=exchange.headers(headers))


def _described(exchange: Exchange, described: Described) -> Response:
    exchange.outcome = described.outcome
    headers = _manifest_headers(described.descriptor, described.warning)
    headers["Content-Length"] = str(described.descriptor.size)
    return Response(headers=exchange.headers(headers))


def _manifest_headers(descriptor: Descriptor, warning: str | None) -> dict[str, str]:
    return {
        "Content-Type": descriptor.media_type,
        "Docker-Content-Digest": descriptor.digest,
        "ETag": f'"{descriptor.digest}"',
        **_warning(warning),
    }


def _sized(exchange: Exchange, digest: Digest, sized: Sized) -> StreamResponse:
    exchange.outcome = sized.outcome
    headers = exchange.headers(blob_headers(digest))
    if sized.size is not None:
        headers["Content-Length"] = str(sized.size)
    return Response(headers=headers)


def _listed(exchange: Exchange, listed: TagList, n: int | None) -> Response:
    exchange.outcome = listed.outcome
    assert exchange.route is not None
    name = exchange.route.repo
    body = json.dumps({"name": name, "tags": listed.tags}).encode()
    exchange.sent = 0 if exchange.is_head else len(body)
    headers = {"Content-Type": "application/json", **_warning(listed.warning)}
    if listed.last is not None:
        query = {"last": listed.last} | ({} if n is None else {"n": str(n)})
        query |= {} if exchange.ns is None else {"ns": exchange.ns}
        headers["Link"] = f'</v2/{name}/tags/list?{urlencode(query)}>; rel="next"'
    return Response(body=body, headers=exchange.headers(headers))


def _failed(exchange: Exchange, error: RegistryError) -> Response:
    """Return the one rendering of every error."""
    exchange.fail(error)
    body = error.body()
    exchange.sent = 0 if exchange.is_head else len(body)
    headers = {"Content-Type": "application/json", **error.headers()}
    return Response(status=error.status, body=body, headers=exchange.headers(headers))


def _warning(text: str | None) -> dict[str, str]:
    """Return the header of distribution-spec "Warnings"."""
    return {} if text is None else {"Warning": f'299 - "{text}"'}
