"""What an IP address is, and which are private. Pure."""

import ipaddress
from typing import Final

_IPv4 = ipaddress.IPv4Address
_IPv6 = ipaddress.IPv6Address

_EMBEDDING: Final = (
    ipaddress.IPv6Network("::/96"),  # IPv4-compatible, RFC 4291 §2.5.5.1
    ipaddress.IPv6Network("::ffff:0:0/96"),  # IPv4-mapped, RFC 4291 §2.5.5.2
    ipaddress.IPv6Network("::ffff:0:0:0/96"),  # IPv4-translated, RFC 2765 §2.1
    ipaddress.IPv6Network("64:ff9b::/96"),  # NAT64, RFC 6052 §2.1
)
"""Networks whose last 32 bits are an IPv4 address, which the packets reach in the end."""

_LOCAL_NAT64: Final = ipaddress.IPv6Network("64:ff9b:1::/48")
"""RFC 8215: a network's own NAT64, which may lead anywhere inside it."""

_ISATAP: Final = (0x00005EFE, 0x02005EFE)
"""The third quarter of an address that ends in an IPv4 address (RFC 5214 §6.1)."""


def is_address(host: str) -> bool:
    """Tell an IP address from a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_private(host: str) -> bool:
    """Return True if ``host`` is an IP address that is not on the public Internet.

    An IPv6 address that embeds IPv4 addresses is private if one of those is. A name is not an
    address: the answer is False.
    """
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, _IPv4):
        return not _is_public(address)
    if address in _LOCAL_NAT64 or address.is_loopback or address.is_unspecified:
        return True
    embedded = _embedded(address)
    if embedded:
        return not all(_is_public(inner) for inner in embedded)
    return not _is_public(address)


def is_local_name(host: str) -> bool:
    """Return True for ``localhost`` and the names below it (RFC 6761 §6.3)."""
    name = host.lower().rstrip(".")
    return name == "localhost" or name.endswith(".localhost")


def _is_public(address: _IPv4 | _IPv6) -> bool:
    site_local = isinstance(address, _IPv6) and address.is_site_local
    return address.is_global and not address.is_multicast and not site_local


def _embedded(address: _IPv6) -> list[_IPv4]:
    """Return the IPv4 addresses to which packets for ``address`` go."""
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
