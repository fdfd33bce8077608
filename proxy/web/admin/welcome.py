"""The page at ``/``, for people: a description of the server, with links."""

import base64
import hashlib
from typing import Final

from aiohttp.web import BaseRequest, Response

_LINES: Final = (
    ("/v2/", "the registry, for container clients"),
    ("/-/", "the dashboard, for a browser"),
    ("/-/stats", "statistics, as JSON"),
    ("/metrics", "metrics for Prometheus"),
    ("/-/healthz", "liveness"),
    ("/-/readyz", "readiness"),
)
_ABOUT: Final = (
    "This is Millpond, a pull-through cache for container images. It fetches images from their "
    "registries when a client pulls them, and stores them. Clients cannot push."
)
_HOW: Final = (
    "Set it up as a mirror in a container client, or write its address in front of an image's "
    "name. `millpond client` prints the files of each client; docs/clients.md explains them."
)
_TEXT: Final = (
    f"{_ABOUT}\n\n{_HOW}\n\n" + "".join(f"{path:<12} {text}\n" for path, text in _LINES)
).encode()
_STYLE: Final = "body{max-width:40em;margin:3em auto;padding:0 1em;font:1em/1.5 sans-serif}"
_ROWS: Final = "".join(
    f'<dt><a href="{path}">{path}</a></dt><dd>{text}</dd>\n' for path, text in _LINES
)
_HTML: Final = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Millpond</title>
<style>{_STYLE}</style>
</head>
<body>
<h1>Millpond</h1>
<p>{_ABOUT}</p>
<p>{_HOW}</p>
<dl>
{_ROWS}</dl>
</body>
</html>
""".encode()
_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()
_HEADERS: Final = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept",
    "X-Content-Type-Options": "nosniff",
}


def page(request: BaseRequest) -> Response:
    """Return the page, as HTML for whoever accepts that, else as text."""
    is_html = "text/html" in request.headers.get("Accept", "").lower()
    kind = "text/html" if is_html else "text/plain"
    return Response(
        body=_HTML if is_html else _TEXT,
        headers={"Content-Type": f"{kind}; charset=utf-8", **_HEADERS},
    )
