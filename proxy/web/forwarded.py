"""The client's address from the headers of a reverse proxy (RFC 7239, ``X-Forwarded-For``).

Also the scheme and the host that the client used.

Any client can send these headers, so they are used only on connections from a trusted proxy. Each
proxy appends the address of its peer, so the list is read from the right: the first address that
is not a trusted proxy is the client. Everything left of it may be forged and is ignored.
"""

import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Final

from aiohttp.web import BaseRequest
from multidict import CIMultiDictProxy

MAX_LENGTH: Final = 4096
"""Characters of all lines of one header together; longer headers are ignored."""

MAX_HOPS: Final = 32
_HOST: Final = re.compile(r"([A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(:[0-9]{1,5})?")
_MAX_ADDRESS: Final = 64
_TRUST_CACHE: Final = 4096


class TrustedProxies:
    """The addresses and networks of trusted proxies."""

    def __init__(self, networks: Iterable[str]) -> None:
        self.use(networks)

    def use(self, networks: Iterable[str]) -> None:
        """Replace the networks."""
        self._networks = [ip_network(network) for network in networks]
        self.trusts = lru_cache(_TRUST_CACHE)(self._trusts)

    def client(self, peer: str | None, headers: CIMultiDictProxy[str]) -> str | None:
        """Return the client's address: the peer's, or the one in a trusted peer's headers."""
        if not self.trusts(peer):
            return peer
        return self.named(headers) or peer

    def named(self, headers: CIMultiDictProxy[str]) -> str | None:
        """Return the client's address in a trusted peer's headers, None without one.

        Most proxies write one of the two headers and forward the other one unchanged. So if both
        are present and disagree, neither is used.
        """
        if not self._networks:
            return None
        found = {
            self._client(hops(headers.getall(name)))
            for name, hops in (("X-Forwarded-For", _plain_hops), ("Forwarded", _hops))
            if name in headers
        }
        return found.pop() if len(found) == 1 else None

    def origin(self, request: BaseRequest) -> tuple[str, str]:
        """Return scheme and host as the client wrote them, "localhost" if the host is malformed.

        A trusted peer names them in ``Forwarded``, or in ``X-Forwarded-Proto`` and ``-Host``.
        """
        headers, peer = request.headers, request.protocol.peername
        scheme, host = request.scheme, headers.get("Host", "")
        if self.trusts(str(peer[0]) if isinstance(peer, (list, tuple)) and peer else None):
            named = _first_pairs(headers.getall("Forwarded", ()))
            scheme = named.get("proto") or _first(headers, "X-Forwarded-Proto") or scheme
            host = named.get("host") or _first(headers, "X-Forwarded-Host") or host
        scheme = scheme.lower()
        is_sane = _HOST.fullmatch(host) is not None
        return scheme if scheme in ("http", "https") else "https", host if is_sane else "localhost"

    def _client(self, hops: Sequence[str]) -> str | None:
        """Return the rightmost address that is not a trusted proxy, else the leftmost."""
        client: str | None = None
        for hop in reversed(hops[-MAX_HOPS:]):
            address = _address(hop)
            if address is None:
                return client
            client = str(address)
            if not self.trusts(client):
                return client
        return client

    def _trusts(self, peer: str | None) -> bool:
        if not self._networks or not peer:
            return False
        address = _address(peer)
        return address is not None and any(address in network for network in self._networks)


def _plain_hops(lines: Sequence[str]) -> list[str]:
    """Return the addresses of ``X-Forwarded-For``, unparsed."""
    text = ",".join(lines)
    return [] if len(text) > MAX_LENGTH else text.split(",")


def _hops(lines: Sequence[str]) -> list[str]:
    """Return the ``for`` of each element of ``Forwarded``, unparsed; empty where it is missing."""
    text = ",".join(lines)
    if len(text) > MAX_LENGTH:
        return []
    hops = []
    for element in _split(text, ","):
        pairs = (pair.partition("=") for pair in _split(element, ";"))
        named = [value.strip() for name, _, value in pairs if name.strip().lower() == "for"]
        hops.append(_unquoted(named[0]) if len(named) == 1 else "")
    return hops


def _first_pairs(lines: Sequence[str]) -> dict[str, str]:
    """Return the pairs of the first element of ``Forwarded``: what the client itself sent."""
    text = ",".join(lines)
    if not text or len(text) > MAX_LENGTH:
        return {}
    pairs = (pair.partition("=") for pair in _split(_split(text, ",")[0], ";"))
    return {name.strip().lower(): _unquoted(value.strip()) for name, _, value in pairs}


def _first(headers: CIMultiDictProxy[str], name: str) -> str:
    """Return the first entry of a list in a header."""
    return headers.get(name, "").partition(",")[0].strip()


def _split(text: str, separator: str) -> list[str]:
    """Return the parts of a list whose values may be quoted strings (RFC 9110 §5.6.4)."""
    parts: list[str] = []
    start, is_quoted, is_escaped = 0, False, False
    for position, character in enumerate(text):
        if is_escaped:
            is_escaped = False
        elif is_quoted and character == "\\":
            is_escaped = True
        elif character == '"':
            is_quoted = not is_quoted
        elif character == separator and not is_quoted:
            parts.append(text[start:position])
            start = position + 1
    parts.append(text[start:])
    return parts


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return value[1:-1]
    return value


def _address(text: str) -> IPv4Address | IPv6Address | None:
    """Return an address with or without a port, None for anything else."""
    text = text.strip(" \t")
    if len(text) > _MAX_ADDRESS or "%" in text:
        return None
    if text.startswith("["):
        host, closed, port = text[1:].partition("]")
        if not closed or (port and not port.startswith(":")):
            return None
        text = host
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return mapped or address
