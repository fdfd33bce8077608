"""Every way a request can fail: one table of classes with an OCI error code and an HTTP status.

Any module raises them; ``web.registry`` renders them. Codes are those of the OCI distribution-spec,
"Error Codes", and of distribution where the specification has none.
"""

import errno
import json
from collections.abc import Iterable
from typing import ClassVar, Final

_DISK_ERRNOS: Final = frozenset(
    getattr(errno, name)
    for name in (
        *("EIO", "ENXIO", "ENODEV", "ENODATA", "EREMOTEIO", "ENOLINK", "ENOMEDIUM", "EMEDIUMTYPE"),
        *("EBADMSG", "EUCLEAN", "EILSEQ", "EBADE", "ESTALE"),  # bad checksums, lost handles
        *("ENOENT", "EACCES", "EPERM", "EISDIR", "ENOTDIR", "ELOOP", "ENAMETOOLONG"),
        *("EROFS", "ENOSPC", "EDQUOT", "EFBIG", "EOVERFLOW"),
    )
    if hasattr(errno, name)
)
"""Errors of disks and file systems (errno(3), Linux's blk_types.h).

Errors of sockets are not among them, nor a lack of descriptors or memory.
"""


class RegistryError(Exception):
    """A failure with an OCI error code. This class itself means a bug: 500 UNKNOWN.

    ``message`` is sent to clients and must not contain a secret; ``detail`` is any JSON value;
    ``retry_after`` is in seconds.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"

    was_forwarded: bool = False
    """The request was sent to upstream."""

    upstream_status: int | None = None
    """The HTTP status of upstream's answer; None if there was none."""

    host: str | None = None
    """The host that failed: the registry, its token server, or the target of a redirect."""

    is_cached: bool = False
    """The absence was known, here or to another replica; upstream was not asked again."""

    def __init__(
        self, message: str, *, detail: object = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after = retry_after

    def body(self) -> bytes:
        """Return the JSON error document (distribution-spec, "Error Codes")."""
        error: dict[str, object] = {"code": self.code, "message": self.message}
        if self.detail is not None:
            error["detail"] = self.detail
        return json.dumps({"errors": [error]}).encode()

    def headers(self) -> dict[str, str]:
        """Return the response headers that belong to this error."""
        if self.retry_after is None:
            return {}
        return {"Retry-After": str(max(1, round(self.retry_after)))}


class RequestInvalid(RegistryError):
    """The request is not valid HTTP, or a parameter is wrong."""

    status, code = 400, "UNSUPPORTED"


class NameInvalid(RegistryError):
    """The repository name breaks the grammar."""

    status, code = 400, "NAME_INVALID"


class TagInvalid(RegistryError):
    """The tag breaks the grammar."""

    status, code = 400, "TAG_INVALID"


class DigestInvalid(RegistryError):
    """The digest breaks the grammar, or its algorithm is not supported."""

    status, code = 400, "DIGEST_INVALID"


class Unprocessable(RegistryError):
    """The body has the wrong format; the message describes the right one."""

    status, code = 422, "UNSUPPORTED"


class PaginationInvalid(RegistryError):
    """``n`` is not a count."""

    status, code = 400, "PAGINATION_NUMBER_INVALID"


class NotFound(RegistryError):
    """The requested object does not exist, according to upstream or to the cache when offline."""

    status = 404


class PathNotFound(NotFound):
    """No endpoint has this path."""

    code = "UNSUPPORTED"


class NameUnknown(NotFound):
    """No such repository or upstream."""

    code = "NAME_UNKNOWN"


class ManifestUnknown(NotFound):
    """No such manifest or tag."""

    code = "MANIFEST_UNKNOWN"


class BlobUnknown(NotFound):
    """No such blob in this repository."""

    code = "BLOB_UNKNOWN"


class PinUnknown(NotFound):
    """No such pin."""

    code = "NAME_UNKNOWN"


class Conflict(RegistryError):
    """The current state forbids the request: a limit is reached, or the same work is running."""

    status, code = 409, "DENIED"


class NotHeld(RegistryError):
    """The client accepts only cached content (``only-if-cached``), and this is not cached."""

    status, code = 504, "UNAVAILABLE"


class StorageUnavailable(RegistryError):
    """The disk does not accept or return data that must not be lost. The client should retry."""

    status, code = 503, "UNAVAILABLE"


class Unauthorized(RegistryError):
    """Our own access control requires authentication."""

    status, code = 401, "UNAUTHORIZED"

    challenge: str = 'Bearer realm="millpond"'
    """How to authenticate (RFC 6750 §3); ``web`` adds where our token endpoint is."""

    def headers(self) -> dict[str, str]:
        """Return our own challenge."""
        return {"WWW-Authenticate": self.challenge}


class TooManyFailures(RegistryError):
    """The client has failed to log in too often, and must wait."""

    status, code = 429, "TOOMANYREQUESTS"


class Denied(RegistryError):
    """Upstream or one of our rules forbids the request.

    It never carries upstream's challenge: clients would send their credentials to the wrong place.
    """

    status, code = 403, "DENIED"


class LoginRejected(Denied):
    """Upstream rejects the client's own login."""


class PolicyDenied(Denied):
    """A policy denies the image; ``policy`` is its name."""

    def __init__(self, message: str, *, policy: str) -> None:
        super().__init__(message, detail={"policy": policy})
        self.policy = policy


class HeldBack(Denied):
    """The image is too young to be served; ``until`` is when it will be (Unix seconds)."""

    def __init__(self, message: str, *, until: float | None) -> None:
        super().__init__(message)
        self.until = until


class Unsupported(RegistryError):
    """The endpoint does not support the method; ``allowed`` are the ones that it supports."""

    status, code = 405, "UNSUPPORTED"

    def __init__(self, message: str, *, allowed: Iterable[str] = ("GET", "HEAD")) -> None:
        super().__init__(message)
        self.allowed = allowed

    def headers(self) -> dict[str, str]:
        """Return ``Allow`` (RFC 9110 §15.5.6)."""
        return {"Allow": ", ".join(self.allowed)}


class ManifestTooLarge(RegistryError):
    """Upstream's manifest is larger than any client accepts."""

    status, code = 502, "MANIFEST_INVALID"


class Overloaded(RegistryError):
    """No descriptors or memory are free. The client should retry."""

    status, code = 503, "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after=retry_after)


class RateLimited(RegistryError):
    """The client is above one of ``access.limits`` and has waited. It should retry later."""

    status, code = 429, "TOOMANYREQUESTS"


class RangeInvalid(RegistryError):
    """The range starts after the end of the blob, which has ``size`` bytes."""

    status, code = 416, "RANGE_INVALID"

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size

    def headers(self) -> dict[str, str]:
        """Return ``Content-Range`` (RFC 9110 §15.5.17)."""
        return {"Content-Range": f"bytes */{self.size}"}


class UpstreamFailure(RegistryError):
    """Upstream failed to answer. Never reported to clients as absence.

    ``is_answer``: upstream was reached, and this is its answer.
    """

    status, code = 502, "UNAVAILABLE"
    was_forwarded = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, is_answer: bool = False
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.is_answer = is_answer


class TooManyRequests(UpstreamFailure):
    """Upstream limits our rate, and the cache has no copy to serve instead."""

    status, code = 429, "TOOMANYREQUESTS"


class CredentialsRejected(UpstreamFailure):
    """Upstream rejects *our* credentials. The operator must fix that, so clients get no 401."""


class UpstreamUnavailable(UpstreamFailure):
    """No connection, a broken answer, or a 5xx. With 502 every client falls back at once."""


class UpstreamRejected(UpstreamFailure):
    """Upstream works and refuses the request. A retry would get the same answer."""


class LoopDetected(UpstreamRejected):
    """The request came back to a proxy that has sent it on (RFC 5842 §7.2)."""

    status = 508


class UpstreamTimeout(UpstreamFailure):
    """Upstream took too long. The answer is sent well before containerd's limit of 30 seconds."""

    status = 504


class ContentMismatch(UpstreamFailure):
    """The bytes do not match their digest or length. They are never stored."""

    found: str | None = None
    """The digest of the bytes; None if it was not calculated."""


class StorageError(Exception):
    """Storage failed. The caller passes content through or fetches it again."""


class FleetUnavailable(Exception):
    """Redis is unreachable or refuses a command. The caller continues without it."""


def is_disk_error(error: BaseException) -> bool:
    """Return True if the error means that a file or its disk is damaged.

    False for errors of sockets and for a lack of descriptors or memory, which do not concern the
    content. A ``StorageError`` is classified by the ``OSError`` that caused it; without a cause it
    concerns the content itself.
    """
    if isinstance(error, StorageError):
        return error.__cause__ is None or is_disk_error(error.__cause__)
    return isinstance(error, OSError) and error.errno in _DISK_ERRNOS


class ConfigError(Exception):
    """A setting is wrong. The message has the file, the key, the error and a valid example."""


class StorageInUse(ConfigError):
    """Another process uses the storage directory."""
