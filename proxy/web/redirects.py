"""Which requests for a blob may be answered with a redirect to the bucket.

A signed URL carries its own permission. A service that gets an ``Authorization`` header as well
answers 400, and would see the client's login for Millpond. So only clients are redirected that are
known to drop the header on the way to another host. Go's HTTP client, which all of these use, keeps
it for a subdomain of the first host. HEAD of a URL that is signed for GET is refused, so HEAD is
answered here; and so are ranges, by which clients resume.
"""

import re
from typing import Final

from aiohttp.web import BaseRequest

_AGENTS: Final = re.compile(
    r"(docker|containerd|buildkit|go-containerregistry|cri-o|containers|podman|skopeo|buildah)/",
    re.IGNORECASE,
)
"""Beginnings of ``User-Agent``. All of these pull from Docker Hub and Quay, which redirect so."""


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
