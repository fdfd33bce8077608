"""Every way a request can fail, as one table of classes: OCI error code and HTTP status.

Raised by any room, rendered in one place (``web.registry``). Knows nothing of HTTP servers.
Codes: OCI distribution-spec, "Error Codes"; those that the spec lacks are distribution's.
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
"""Errors that a disk or a file system reports about a file (Linux: errno(3), blk_types.h).

Neither sockets nor a process that runs out of descriptors or memory are among the causes.
"""


class RegistryError(Exception):
    """A failure with an OCI error code. On its own it means a bug: 500 UNKNOWN.

    ``message`` is for people and must never hold a secret; ``detail`` is any JSON value.
    ``retry_after`` is in seconds.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "UNKNOWN"

    was_forwarded: bool = False
    """Upstream was asked before this error was known."""

    upstream_status: int | None = None
    """The HTTP status that upstream answered with; None when it gave none."""

    host: str | None = None
    """The host that failed: the registry, its token server, or one that it redirected to."""

    is_remembered: bool = False
    """Upstream said so earlier, and was not asked again."""

    def __init__(
        self, message: str, *, detail: object = None, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.retry_after = retry_after

    def body(self) -> bytes:
        """Return the JSON error document of distribution-spec, "Error Codes"."""
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
    """What came is no HTTP."""

    status, code = 400, "UNSUPPORTED"


class NameInvalid(RegistryError):
    """The repository name breaks the grammar."""

    status, code = 400, "NAME_INVALID"


class TagInvalid(RegistryError):
    """The tag breaks the grammar."""

    status, code = 400, "TAG_INVALID"


class DigestInvalid(RegistryError):
    """The digest breaks the grammar, or names an algorithm that cannot be verified here."""

    status, code = 400, "DIGEST_INVALID"


class PaginationInvalid(RegistryError):
    """``n`` is not a count."""

    status, code = 400, "PAGINATION_NUMBER_INVALID"


class NotFound(RegistryError):
    """What was asked for does not exist, as far as anybody entitled to say so knows."""

    status = 404


class PathNotFound(NotFound):
    """The path belongs to no end-point."""

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
    """What is there does not allow it: a budget that is used up, work that is being done."""

    status, code = 409, "DENIED"


class NotHeld(RegistryError):
    """The client wants only what is held (``only-if-cached``), and this is not."""

    status, code = 504, "UNAVAILABLE"


class StorageUnavailable(RegistryError):
    """The disk does not take what must survive, or does not give it: ask again when it does."""

    status, code = 503, "UNAVAILABLE"


class Unauthorized(RegistryError):
    """Our own access control wants to know who this is."""

    status, code = 401, "UNAUTHORIZED"

    def headers(self) -> dict[str, str]:
        """Return our own challenge (RFC 6750 §3)."""
        return {"WWW-Authenticate": 'Bearer realm="millpond"'}


class Denied(RegistryError):
    """Upstream, or a rule of ours, does not allow it.

    Never carries upstream's challenge: a client would send its credentials to the wrong place.
    """

    status, code = 403, "DENIED"


class Unsupported(RegistryError):
    """The method writes, and this registry only reads; ``allowed`` is what may be done instead."""

    status, code = 405, "UNSUPPORTED"

    def __init__(self, message: str, *, allowed: Iterable[str] = ("GET", "HEAD")) -> None:
        super().__init__(message)
        self.allowed = allowed

    def headers(self) -> dict[str, str]:
        """Return ``Allow``, as RFC 9110 §15.5.6 requires."""
        return {"Allow": ", ".join(self.allowed)}


class ManifestTooLarge(RegistryError):
    """Upstream's manifest is larger than any client would read."""

    status, code = 502, "MANIFEST_INVALID"


class Overloaded(RegistryError):
    """No descriptors or memory are left for the request now; the client should try again."""

    status, code = 503, "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message, retry_after=retry_after)


class RangeInvalid(RegistryError):
    """The range starts behind the end of the blob, whose ``size`` is in bytes."""

    status, code = 416, "RANGE_INVALID"

    def __init__(self, message: str, *, size: int) -> None:
        super().__init__(message)
        self.size = size

    def headers(self) -> dict[str, str]:
        """Return ``Content-Range``, as RFC 9110 §15.5.17 asks."""
        return {"Content-Range": f"bytes */{self.size}"}


class UpstreamFailure(RegistryError):
    """Upstream could not or would not answer now. Never to be told as absence."""

    status, code = 502, "UNAVAILABLE"
    was_forwarded = True

    def __init__(
        self, message: str, *, retry_after: float | None = None, is_answer: bool = False
    ) -> None:
        """``is_answer``: upstream was reached, and this is what it said."""
        super().__init__(message, retry_after=retry_after)
        self.is_answer = is_answer


class TooManyRequests(UpstreamFailure):
    """Upstream limits our rate and nothing held can stand in."""

    status, code = 429, "TOOMANYREQUESTS"


class CredentialsRejected(UpstreamFailure):
    """Upstream refused *our* credentials: the operator's to mend, so no 401 to the client."""


class UpstreamUnavailable(UpstreamFailure):
    """No connection, a broken answer, or a 5xx. 502 makes every client fall back at once."""


class UpstreamRejected(UpstreamFailure):
    """Upstream answered that it will not: it works, and asking again would change nothing."""


class UpstreamTimeout(UpstreamFailure):
    """Upstream took too long; said well inside containerd's 30 seconds."""

    status = 504


class ContentMismatch(UpstreamFailure):
    """The bytes are not what their digest or length says. Never stored."""


class StorageError(Exception):
    """The disk refused. Ours to survive: the caller passes through or fetches again."""


def is_disk_error(error: BaseException) -> bool:
    """Return True if an error says that a file or the disk below it is bad.

    False for errors of sockets, and for a process that runs out of descriptors or memory: content
    must not be given up for those. A ``StorageError`` is judged by the ``OSError`` that caused it;
    one without such a cause is about the content itself.
    """
    if isinstance(error, StorageError):
        return error.__cause__ is None or is_disk_error(error.__cause__)
    return isinstance(error, OSError) and error.errno in _DISK_ERRNOS


class ConfigError(Exception):
    """A setting is wrong. The message names file, key path, what is wrong and what is right."""


class StorageInUse(ConfigError):
    """Another process has the storage directory."""
