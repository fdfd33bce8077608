"""Responses with a short body: manifests, HEAD, lists, errors, and 304."""

import json
from urllib.parse import urlencode

from aiohttp.web import Response

from proxy.core.errors import RegistryError
from proxy.core.manifests import OCI_INDEX
from proxy.core.names import Digest
from proxy.core.records import Descriptor
from proxy.repository.results import BlobHead, Manifest, ManifestHead, NamePage, Referrers
from proxy.runtime.metrics import Outcome
from proxy.web.blob import blob_headers
from proxy.web.exchange import Exchange
from proxy.web.pacing import PacedResponse

JSON = "application/json"


def base(exchange: Exchange) -> Response:
    """Return the response of ``/v2/``, the API version check (distribution-spec "Endpoints")."""
    return Response(body=b"{}", headers=exchange.headers({"Content-Type": JSON}))


def manifest(exchange: Exchange, found: Manifest) -> Response:
    """Return a manifest (distribution-spec "Pulling manifests")."""
    exchange.answered(found.outcome, found.forward)
    exchange.fresh, exchange.held_until = found.fresh, found.held_until
    if is_unmodified(exchange, found.descriptor.digest):
        return unmodified(exchange, found.descriptor.digest)
    exchange.place = found.place
    exchange.sent, exchange.digest = len(found.body), found.descriptor.digest
    headers = manifest_headers(found.descriptor, found.warning)
    response = PacedResponse(body=found.body, headers=exchange.headers(headers))
    response.pace = exchange.client
    return response


def described(exchange: Exchange, found: ManifestHead) -> Response:
    """Return the headers of a manifest."""
    exchange.answered(found.outcome, found.forward)
    exchange.fresh, exchange.stores = found.fresh, False
    exchange.held_until = found.held_until
    if is_unmodified(exchange, found.descriptor.digest):
        return unmodified(exchange, found.descriptor.digest)
    headers = manifest_headers(found.descriptor, found.warning)
    headers["Content-Length"] = str(found.descriptor.size)
    return Response(headers=exchange.headers(headers))


def sized(exchange: Exchange, digest: Digest, found: BlobHead) -> Response:
    """Return the headers of a blob."""
    exchange.answered(found.outcome)
    exchange.stores = False
    if is_unmodified(exchange, digest):
        return unmodified(exchange, digest)
    headers = blob_headers(digest)
    if found.size is not None:
        headers["Content-Length"] = str(found.size)
    return Response(headers=exchange.headers(headers))


def redirected(exchange: Exchange, digest: Digest, url: str) -> Response:
    """Return 307 to the URL of a blob (distribution-spec "Pulling blobs")."""
    exchange.answered(Outcome.HIT)
    exchange.status = 307
    headers = {"Location": url, "Docker-Content-Digest": digest, "Cache-Control": "no-store"}
    return Response(status=307, headers=exchange.headers(headers))


def listed(exchange: Exchange, found: NamePage, document: dict[str, object], path: str) -> Response:
    """Return one page of a list, with a ``Link`` to the next page at this proxy."""
    exchange.answered(found.outcome, found.forward)
    headers = {"Content-Type": JSON, **_warning(found.warning)}
    if found.next_query:
        query = found.next_query | ({} if exchange.ns is None else {"ns": exchange.ns})
        headers["Link"] = f'<{path}?{urlencode(query)}>; rel="next"'
    return _body(exchange, json.dumps(document).encode(), headers)


def referrers(exchange: Exchange, found: Referrers) -> Response:
    """Return the referrers of a manifest (distribution-spec "Listing Referrers")."""
    exchange.answered(found.outcome, found.forward)
    document = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": list(found.entries)}
    headers = {"Content-Type": OCI_INDEX, **_warning(found.warning)}
    if found.is_filtered:
        headers["OCI-Filters-Applied"] = "artifactType"
    return _body(exchange, json.dumps(document).encode(), headers)


def failed(exchange: Exchange, error: RegistryError) -> Response:
    """Return the response for an error: its OCI error document."""
    exchange.fail(error)
    headers = {"Content-Type": JSON, **error.headers()}
    return _body(exchange, error.body(), headers, status=error.status)


def is_unmodified(exchange: Exchange, digest: Digest) -> bool:
    """Return True if ``If-None-Match`` names the digest (RFC 9110 §13.1.2), quoted or not."""
    condition = exchange.request.headers.get("If-None-Match")
    if condition is None:
        return False
    known = (tag.strip().removeprefix("W/").strip('"') for tag in condition.split(","))
    return any(tag in (digest, "*") for tag in known)


def unmodified(exchange: Exchange, digest: Digest) -> Response:
    """Return 304 with the headers that RFC 9110 §15.4.5 asks for."""
    exchange.status = 304
    headers = {"ETag": f'"{digest}"', "Docker-Content-Digest": digest}
    return Response(status=304, headers=exchange.headers(headers))


def _body(exchange: Exchange, body: bytes, headers: dict[str, str], status: int = 200) -> Response:
    exchange.sent = 0 if exchange.is_head else len(body)
    response = PacedResponse(status=status, body=body, headers=exchange.headers(headers))
    response.pace = exchange.client if status == 200 else None  # errors are short
    return response


def manifest_headers(descriptor: Descriptor, warning: str | None = None) -> dict[str, str]:
    """Return the headers of every response with or about a manifest."""
    return {
        "Content-Type": descriptor.media_type,
        "Docker-Content-Digest": descriptor.digest,
        "ETag": f'"{descriptor.digest}"',
        **_sandbox(descriptor.media_type),
        **_warning(warning),
    }


def _sandbox(media_type: str) -> dict[str, str]:
    """Return the header that prevents browsers from running a manifest with the type of a page.

    An image declares its own type. The dashboard, which stores a login, has the same origin.
    """
    is_known = media_type.lower().startswith("application/vnd.")
    return {} if is_known else {"Content-Security-Policy": "sandbox"}


def _warning(text: str | None) -> dict[str, str]:
    """Return the header of distribution-spec "Warnings"."""
    return {} if text is None else {"Warning": f'299 - "{text}"'}
