"""The connection to a registry: its name, its port, and its certificate."""

import asyncio
import socket
import ssl
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from yarl import URL

from proxy.app.doctor.results import Finding, failed, ok, skipped, warning
from proxy.settings import UpstreamTLS
from proxy.upstream.guard import is_address
from proxy.upstream.transport import Proxies, client_context

SOON_SECONDS: Final = 14 * 86400
"""A certificate that expires within this time is a warning."""

_IGNORE_DATES: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL (x509_vfy.h)."""

_NOT_YET_VALID, _EXPIRED = 9, 10
_WRONG_NAME: Final = (62, 64)
"""Results of a verification (OpenSSL's verify(1)); the other ones concern the authority."""


@dataclass(frozen=True, slots=True)
class Way:
    """The connection to the registry ``name`` at ``url``, directly or through a proxy."""

    name: str
    url: URL
    tls: UpstreamTLS
    proxy: URL | None

    @classmethod
    def to(cls, name: str, url: URL, tls: UpstreamTLS) -> "Way":
        """Return the connection with the proxies of the environment."""
        return cls(name, url, tls, Proxies().route(url)[0])

    @property
    def next_hop(self) -> URL:
        """The peer that this machine connects to: the registry, or the proxy."""
        return self.proxy or self.url

    async def dns(self) -> Finding:
        """Look up the name of the next hop."""
        host, port = _place(self.next_hop)
        if is_address(host):
            return skipped(f"{host} is an address")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(
                host, port, type=socket.SOCK_STREAM
            )
        except (OSError, UnicodeError) as error:  # the second for a name that can be none
            return failed(
                f"{host} is not found: {_reason(error)}",
                "check the name in url, and the name servers in /etc/resolv.conf",
            )
        addresses = sorted({str(entry[4][0]) for entry in found})
        return ok(f"{host} is {', '.join(addresses[:4])}")

    async def tcp(self) -> Finding:
        """Connect to the next hop."""
        host, port = _place(self.next_hop)
        began = time.monotonic()
        try:
            _, writer = await asyncio.open_connection(host, port)
        except OSError as error:
            return failed(
                f"{host} port {port} cannot be reached: {_reason(error)}",
                "check the address in url, the route and the firewall; "
                "HTTPS_PROXY and NO_PROXY name a proxy",
            )
        writer.close()
        through = " of the proxy" if self.proxy is not None else ""
        took = (time.monotonic() - began) * 1000
        return ok(f"{host} port {port}{through} answers in {took:.0f} ms")

    async def certificate(self) -> Finding:
        """Verify the registry's certificate as Millpond does, and look at its dates."""
        if self.url.scheme == "http":
            return skipped("url begins with http://: there is no TLS")
        if self.proxy is not None:
            return skipped("there is a proxy in between; the next check sees its certificate")
        context = client_context(self.name, self.tls)
        try:
            found = await self._certificate(context)
        except ssl.SSLCertVerificationError as error:
            return await self._untrusted(error)
        except (ssl.SSLError, OSError) as error:
            return failed(
                f"TLS fails: {_reason(error)}",
                "check that url has the right scheme and port, and a client certificate if needed",
            )
        if not found:
            return warning(
                "the certificate is not verified", f"set upstreams.{self.name}.tls.verify: true"
            )
        ends = ssl.cert_time_to_seconds(found["notAfter"])
        if ends - time.time() < SOON_SECONDS:
            return warning(f"the certificate expires on {_day(ends)}", "renew it at the registry")
        return ok(f"the certificate is trusted, and valid until {_day(ends)}")

    async def _certificate(self, context: ssl.SSLContext) -> dict[str, Any]:
        """Return the verified certificate, {} if it is not verified. Raises ``SSLError``."""
        host, port = _place(self.url)
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        try:
            connection: ssl.SSLObject = writer.get_extra_info("ssl_object")
            return connection.getpeercert() or {}
        finally:
            writer.close()

    async def _untrusted(self, error: ssl.SSLCertVerificationError) -> Finding:
        if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
            return await self._out_of_date(error.verify_code == _EXPIRED)
        if error.verify_code in _WRONG_NAME:
            remedy = "check the host name in url: the certificate is for another one"
        else:
            remedy = (
                "if a private authority signed it, name its certificate in "
                f"upstreams.{self.name}.tls.ca_file"
            )
        return failed(f"the certificate is not trusted: {error.verify_message}", remedy)

    async def _out_of_date(self, is_expired: bool) -> Finding:  # noqa: FBT001 - one of two
        """Return the dates of a certificate that is not valid now."""
        context = client_context(self.name, self.tls)
        context.verify_flags |= _IGNORE_DATES
        try:
            found = await self._certificate(context)
        except (ssl.SSLError, OSError):
            found = {}
        key = "notAfter" if is_expired else "notBefore"
        day = f" on {_day(ssl.cert_time_to_seconds(found[key]))}" if found else ""
        verb = "expired" if is_expired else "is not valid yet: it begins"
        return failed(
            f"the certificate {verb}{day}; this machine's clock says {_day(time.time())}",
            "renew it at the registry, or set this machine's clock",
        )


def _place(url: URL) -> tuple[str, int]:
    return url.host or "", url.port or 0


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")


def _reason(error: OSError | UnicodeError) -> str:
    """Return why a connection failed, without addresses that repeat."""
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).replace("_", " ").lower()
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror or str(error) or type(error).__name__
