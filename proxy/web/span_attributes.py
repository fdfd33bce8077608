"""The span of a request, with OpenTelemetry's names for HTTP where they exist.

https://opentelemetry.io/docs/specs/semconv/http/http-spans/
"""

import re
from typing import Final

from aiohttp.web import BaseRequest

from proxy.runtime.spans import Attributes
from proxy.web.announcer import readable
from proxy.web.exchange import Exchange

MAX_TEXT: Final = 200
_KIND: Final = re.compile(r"/(manifests|blobs|tags|referrers)/")


def name(request: BaseRequest) -> str:
    """Return the name of a request's span. It has few values, so it contains no repository."""
    kind = _KIND.search(request.path)
    return f"{request.method} /v2/{'' if kind is None else kind[1]}"


def attributes(exchange: Exchange) -> Attributes:
    """Return the attributes of the span of a request that has ended."""
    request, target, route = exchange.request, exchange.target, exchange.route
    return {
        "http.request.method": request.method,
        "url.path": readable(request.path, MAX_TEXT),
        "url.scheme": request.scheme,
        "http.response.status_code": exchange.status,
        "http.response.body.size": exchange.sent,
        "client.address": request.remote,
        "user_agent.original": readable(request.headers.get("User-Agent", ""), MAX_TEXT) or None,
        "millpond.request_id": exchange.request_id,
        "millpond.upstream": None if target is None else target.upstream,
        "millpond.repository": None if target is None else target.repo,
        "millpond.reference": None if route is None else route.ref[:MAX_TEXT] or None,
        "millpond.outcome": None if exchange.outcome is None else exchange.outcome.value,
    }
