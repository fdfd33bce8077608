"""How ``web`` identifies clients: the interface to everything that verifies credentials."""

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
    """Verifies credentials. ``authorization`` is the header's value, None without one."""

    def seal(self, authorization: str) -> bytes:
        """Return a keyed hash, which may stay in memory, unlike the value itself."""

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        """Return the principal if it is known without waiting; None: await ``identify``.

        Known are anonymous clients, our own unexpired tokens, certificates, and credentials that
        were verified before. ``credential`` is the sealed ``Authorization``, None without one.
        """

    async def identify(
        self,
        authorization: str | None,
        address: str | None,
        certificate: Certificate | None,
        upstream: str | None = None,
    ) -> Principal:
        """Return the principal. Credentials that are not ours may be for ``upstream``.

        Raises ``Unauthorized`` for a wrong credential, ``TooManyRequests`` for a client that failed
        too often.
        """


class AnonymousIdentifier:
    """Without access control each client is anonymous, whatever it sends."""

    def seal(self, authorization: str) -> bytes:
        """Return an empty text: the value is not used."""
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
