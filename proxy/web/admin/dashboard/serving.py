"""Serves the files of the dashboard, which are part of this package.

They contain no data: the scripts request all data from the Admin API. Only the package's own files
are served, so no path leads elsewhere.
"""

import gzip
import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath
from typing import Final

from aiohttp.web import BaseRequest, Response

from proxy.core.errors import ConfigError, PathNotFound
from proxy.web.pacing import PacedResponse

ROOT: Final = "/-/"
INDEX: Final = "index.html"

_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
    ".txt": "text/plain",
}
_HEADERS: Final = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    ),
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "Vary": "Accept-Encoding",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class _File:
    plain: bytes
    compressed: bytes
    etag: str
    content_type: str
    cache_control: str


class Dashboard:
    """The files in memory, by path.

    All but the page itself are below a path with a hash of all files, so a browser may cache them,
    and never mixes two versions.
    """

    def __init__(self) -> None:
        """Raise ``ConfigError`` if the files of this package cannot be read."""
        folder = resources.files(__package__) / "static"
        try:
            entries = [entry for entry in folder.iterdir() if entry.is_file()]
            found = {entry.name: entry.read_bytes() for entry in entries}
        except OSError as error:
            problem = f"the dashboard's files cannot be read: {error.strerror}"
            raise ConfigError(f"{problem}; install Millpond again") from None
        whole = hashlib.sha256()
        for name, body in sorted(found.items()):
            whole.update(f"{name} {len(body)} ".encode() + body)
        version = whole.hexdigest()[:16]
        page = found.pop(INDEX).replace(b'"static/', f'"static/{version}/'.encode())
        self._files = {ROOT: _file(INDEX, page, "no-cache")}
        for name, body in found.items():
            path = f"{ROOT}static/{version}/{name}"
            self._files[path] = _file(name, body, "public, max-age=31536000, immutable")

    def has(self, path: str) -> bool:
        """Return True if a path belongs to the dashboard."""
        return path in ("/-", ROOT) or path.startswith(f"{ROOT}static/")

    def answer(self, request: BaseRequest) -> Response:
        """Return a file, or that the client has it (RFC 9110 §13). Raises ``PathNotFound``."""
        if request.path == "/-":
            return Response(status=308, headers={"Location": ROOT})
        file = self._files.get(request.path)
        if file is None:
            raise PathNotFound("no such file; reload the dashboard")
        headers = {**_HEADERS, "Cache-Control": file.cache_control, "ETag": file.etag}
        if file.etag in request.headers.get("If-None-Match", ""):
            return Response(status=304, headers=headers)
        headers["Content-Type"] = file.content_type
        body = file.plain
        if _accepts_gzip(request):
            body = file.compressed
            headers["Content-Encoding"] = "gzip"
        return PacedResponse(body=body, headers=headers)


def _file(name: str, body: bytes, cache_control: str) -> _File:
    """Return a file; the ETag is weak because the compressed bytes have the same one."""
    etag = f'W/"{hashlib.sha256(body).hexdigest()[:32]}"'
    content_type = f"{_TYPES[PurePath(name).suffix]}; charset=utf-8"
    return _File(body, gzip.compress(body, 9, mtime=0), etag, content_type, cache_control)


def _accepts_gzip(request: BaseRequest) -> bool:
    """Return True if ``Accept-Encoding`` names gzip, other than to refuse it (RFC 9110 §12.5.3)."""
    for part in request.headers.get("Accept-Encoding", "").lower().split(","):
        coding, *parameters = (word.strip() for word in part.split(";"))
        if coding in ("gzip", "*"):
            return not any(p in ("q=0", "q=0.0", "q=0.00", "q=0.000") for p in parameters)
    return False
