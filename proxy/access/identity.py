"""How ``web`` learns who a client is: the seam to everything that verifies credentials."""

from dataclasses import dataclass
from typing import Protocol

from proxy.access.principals import Principal


@dataclass(frozen=True, slots=True)
class Certificate:
    """The names in a client certificate that TLS has verified (RFC 5280 §4.1.2.6, §4.2.1.6)."""

    common_name: str | None = None
    emails: tuple[str, ...] = ()
    dns: tuple[str, ...] = ()
    uris: tuple[str, ...] = ()


class Identifier(Protocol):
    """Verifies what a client sends. ``authorization`` is the header's value, None without one."""

    def seal(self, authorization: str) -> bytes:
        """Return a keyed hash, which may stay in memory where the value itself may not."""

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        """Return who this is if that is known without waiting; None: await ``identify``.

        Known are anonymous clients, unexpired tokens of our own, certificates, and credentials that
        were verified before. ``credential`` is the sealed ``Authorization``, None without one.
        """

    async def identify(
        self,
        authorization: str | None,
        address: str | None,
        certificate: Certificate | None,
        upstream: str | None = None,
    ) -> Principal:
        """Return who this is. Credentials that are not ours may be for ``upstream``.

        Raises ``Unauthorized`` for a wrong credential, ``TooManyRequests`` for a client that failed
        too often.
        """


class Everyone:
    """Without access control each client is anonymous, whatever it sends."""

    def seal(self, authorization: str) -> bytes:
        """Return nothing of a value that is not looked at."""
        del authorization
        return b""

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        """Return an anonymous client."""
        del credential, certificate
        return Principal(address)

    async def identify(
        self,
        authorization: str | None,
        address: str | None,
        certificate: Certificate | None,
        upstream: str | None = None,
    ) -> Principal:
        """Return an anonymous client."""
        del authorization, certificate, upstream
        return Principal(address)
