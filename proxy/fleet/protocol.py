"""Paths and headers of requests between replicas. Clients cannot use them: see ``signatures``.

``GET`` or ``HEAD /-/fleet/{blobs,manifests}/<digest>?upstream=…&repository=…&offset=…&live=1``, and
``&begin=1``.
A body with an unknown size is chunked. Unknown parameters are ignored, so that a newer replica can
ask an older one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple, Self
from urllib.parse import parse_qs, urlencode

from proxy.core.names import Digest, Target, parse_digest, parse_repo

PREFIX: Final = "/-/fleet/"
CONTENT_HEADER: Final = "Millpond-Content"
NOT_YET: Final = 503
"""The replica is fetching it, but its registry has not answered yet; or the replica is busy."""

ADDRESS: Final = re.compile(r"https?://[A-Za-z0-9._\-:\[\]]{1,250}")
"""Address of a replica. Whoever writes to Redis must not choose the path that replicas ask for."""

BLOBS: Final = "blobs"
MANIFESTS: Final = "manifests"


class ContentRequest(NamedTuple):
    """The requested content, its repository, and the first byte.

    ``live``: also from a download in progress, before its digest is proven. ``begin``: the replica
    begins that download if there is none, because the requesting replica has no free space.
    """

    kind: str
    target: Target
    digest: Digest
    offset: int = 0
    live: bool = False
    begin: bool = False

    @property
    def path(self) -> str:
        """The path with its query."""
        query = {"upstream": self.target.upstream, "repository": self.target.repo}
        more = {"offset": self.offset, "live": int(self.live), "begin": int(self.begin)}
        return f"{PREFIX}{self.kind}/{self.digest}?{urlencode(query | more, safe='/:')}"

    @classmethod
    def parse(cls, path: str) -> Self | None:
        """Parse a path, None for other paths. Raises ``RegistryError``."""
        bare, _, query = path.partition("?")
        kind, _, digest = bare.removeprefix(PREFIX).partition("/")
        values = {name: found[0] for name, found in parse_qs(query, max_num_fields=20).items()}
        offset = values.get("offset", "0")
        is_known = kind in {BLOBS, MANIFESTS} and offset.isdecimal() and len(offset) < 16
        if not is_known or "upstream" not in values or "repository" not in values:
            return None
        target = Target(values["upstream"], parse_repo(values["repository"]))
        live, begin = (values.get(name) == "1" for name in ("live", "begin"))
        return cls(kind, target, parse_digest(digest), int(offset), live, begin)


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """Properties of content. ``size`` in bytes is that of the whole, None if unknown.

    ``is_confirmed``: the registry has confirmed to the replica that the repository has it.
    """

    size: int | None
    is_public: bool
    is_confirmed: bool
    media_type: str = ""

    @property
    def header(self) -> str:
        """The value of ``CONTENT_HEADER``."""
        size = "" if self.size is None else self.size
        return f"size={size};public={self.is_public:d};confirmed={self.is_confirmed:d}" + (
            f";type={self.media_type}" if self.media_type else ""
        )

    @classmethod
    def parse(cls, headers: Mapping[str, str]) -> Self | None:
        """Parse the headers of a response, None if they are malformed."""
        pairs = (part.partition("=") for part in headers.get(CONTENT_HEADER, "").split(";"))
        values = {name: value for name, _, value in pairs}
        size = values.get("size", "?")
        if size and not (size.isdecimal() and len(size) < 16):
            return None
        return cls(
            int(size) if size else None,
            values.get("public") == "1",
            values.get("confirmed") == "1",
            values.get("type", ""),
        )
