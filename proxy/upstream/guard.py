"""Checks the addresses of redirects and token servers that an upstream names.

A public upstream cannot make us connect to a private, loopback or link-local address, neither
literally nor through DNS. Otherwise it could read services of our own network (server-side request
forgery, https://cheatsheetseries.owasp.org/cheatsheets/Server_Side_Request_Forgery_Prevention_Cheat_Sheet.html).
Only the configuration decides which upstream is private, never DNS: the owner of a name can change
its address between two lookups ("DNS rebinding").
"""

import ipaddress
import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from proxy.core.errors import UpstreamUnavailable

_IPv4 = ipaddress.IPv4Address
_IPv6 = ipaddress.IPv6Address

_EMBEDDING: Final = (
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 §2.5.5.1
    ipaddress.IPv6Network("::ffff:0:0/96"),  # IPv4-mapped, RFC 4291 §2.5.5.2
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765 §2.1
    ipaddress.IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052 §2.1
)
"""Networks whose last 32 bits are the IPv4 address that receives the packets."""

_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
"""RFC 8215: NAT64 of the local network, which may lead to any address inside it."""

_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""Third quarter of an address that ends in an IPv4 address (RFC 5214 §6.1)."""


def is_address(host: str) -> bool:
    """Return True if ``host`` is an IP address and not a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_private(host: str) -> bool:
    """Return True if ``host`` is an IP address outside the public Internet, False for a name.

    An IPv6 address that embeds IPv4 addresses is private if one of those is.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, _IPv4):
        return not _is_public(address)
    if address in _LOCAL_NAT64:
        return True
    return not all(map(_is_public, _embedded(address) or (address,)))


def _is_public(address: _IPv4 | _IPv6) -> bool:
    site_local = isinstance(address, _IPv6) and address.is_site_local
    return address.is_global and not address.is_multicast and not site_local


def _embedded(address: _IPv6) -> list[_IPv4]:
    """Return the IPv4 addresses that receive packets sent to ``address``."""
    value = int(address)
    last = _IPv4(value & 0xFFFF_FFFF)
    if any(address in network for network in _EMBEDDING):
        return [last]
    if address.sixtofour is not None:  # RFC 3056
        return [address.sixtofour]
    if address.teredo is not None:  # RFC 4380: the relay's server and the client behind it
        return list(address.teredo)
    if (value >> 32) & 0xFFFF_FFFF in _ISATAP and _is_public(address):
        return [last]
    return []


@dataclass(frozen=True, slots=True)
class Network:
    """How names are resolved and which addresses are private. Tests replace both."""

    resolver: Callable[[], AbstractResolver] = field(default=ThreadedResolver)
    is_private: Callable[[str], bool] = field(default=is_private)


SYSTEM_NETWORK: Final = Network()


class Guard:
    """Permits addresses for the upstream at ``url``. ``trusted`` hosts come from ``auth_hosts``.

    A host with a private address has four cases:

    - The upstream is private: the configuration says so, or its ``url`` holds a private address or
      a local name (``localhost``, RFC 6761 §6.3). It may send us anywhere.
    - The host is ``trusted``. The operator named it, so we may connect to it.
    - Host and port are those of ``url``. The operator named them too, so a registry of an intranet
      works under its name. Another port of that host is refused.
    - Any other host is refused.
    """

    def __init__(
        self, url: URL, trusted: Iterable[str], *, private: bool, network: Network
    ) -> None:
        self.url: Final = url
        self.network: Final = network
        self._trusted = frozenset(trusted)
        self._proxies: frozenset[tuple[str, int]] = frozenset()
        host = url.host or ""
        is_local = f".{host.lower().rstrip('.')}".endswith(".localhost")
        self._allows_private = private or network.is_private(host) or is_local

    def permit_proxies(self, proxies: Iterable[URL]) -> None:
        """Permit connections to our own HTTP proxies, which may be private."""
        self._proxies |= frozenset((proxy.host or "", proxy.port or 0) for proxy in proxies)

    def check(self, url: URL) -> None:
        """Raise ``UpstreamUnavailable`` if ``url`` holds an address that is not permitted."""
        host = url.host or ""
        if self.network.is_private(host) and not self._permits_private(host, url.port):
            raise UpstreamUnavailable(
                f"{self.url.host} redirects to the private address {host}; "
                "if both are in your network, set private: true for this upstream"
            )

    def permitted(
        self, host: str, port: int, addresses: list[ResolveResult]
    ) -> list[ResolveResult]:
        """Return those ``addresses`` of ``host`` to which we may connect at ``port``."""
        if self._permits_private(host, port) or (host, port) in self._proxies:
            return addresses
        return [entry for entry in addresses if not self.network.is_private(entry["host"])]

    def _permits_private(self, host: str, port: int | None) -> bool:
        is_own = (host, port) == (self.url.host, self.url.port)
        return self._allows_private or is_own or host in self._trusted


class GuardedResolver(AbstractResolver):
    """Resolves names and drops the addresses that the guard does not permit.

    The check is made on the addresses that are then used, so a second lookup cannot change them.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._resolver = guard.network.resolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the permitted addresses of ``host``. Raises ``OSError`` if there are none."""
        found = await self._resolver.resolve(host, port, family)
        addresses = self._guard.permitted(host, port, found)
        if not addresses:
            raise OSError(
                None,
                f"{host} has private addresses only; "
                "if it is in your network, set private: true for this upstream",
            )
        return addresses

    async def close(self) -> None:
        """Close the resolver."""
        await self._resolver.close()
