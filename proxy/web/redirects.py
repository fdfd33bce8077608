"""Which requests for a blob may be answered with a redirect to the bucket.

A signed URL contains the permission. A service that also gets an ``Authorization`` header answers
400, and sees the client's login for Millpond. So only clients are redirected that are known to drop
the header for another host. Go's HTTP client, which all of these use, keeps it for a subdomain of
the first host. Services refuse HEAD of a URL that is signed for GET, so Millpond answers HEAD; it
also answers ranges, with which clients resume.
"""

import re
from typing import Final

from aiohttp.web import BaseRequest

_AGENTS: Final = re.compile(
    r"(docker|containerd|buildkit|go-containerregistry|cri-o|containers|podman|skopeo|buildah)/",
    re.IGNORECASE,
)
"""Prefixes of ``User-Agent``. These clients follow the same redirects of Docker Hub and Quay."""


def may_redirect(request: BaseRequest, public_host: str) -> bool:
    """Return True if a client may be redirected to ``public_host``."""
    if request.method != "GET" or "Range" in request.headers or "Cache-Control" in request.headers:
        return False
    if _AGENTS.match(request.headers.get("User-Agent", "")) is None:
        return False
    own = _name(request.host)
    return public_host != own and not public_host.endswith(f".{own}")


def _name(host: str) -> str:
    """Return a host without its port, in lower case."""
    return re.sub(r":\d+$", "", host).lower()
