"""Who a client is: its address, its user with groups and networks, and how it authenticated."""

from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network
from typing import Final

_NETWORKS: Final = 65_536
"""Number of addresses whose network is cached."""


class Method(Enum):
    """How a client authenticated."""

    ANONYMOUS = auto()
    """Not at all."""
    PASSWORD = auto()
    """User and password of the htpasswd file."""
    TOKEN = auto()
    """An access token of the tokens file."""
    OIDC = auto()
    """An ID token of a configured issuer."""
    CERTIFICATE = auto()
    """A client certificate."""
    ADMIN_TOKEN = auto()
    """The token of ``admin.token_file``."""
    CALLER = auto()
    """A login for an upstream, which only that upstream can verify."""
    SOCKET = auto()
    """The admin socket: only the owner of the cache's directory can connect."""


@dataclass(frozen=True, slots=True)
class Principal:
    """A client. ``networks`` and the groups of ``access.groups`` are added by ``Memberships``."""

    address: str | None = None
    """Its address, taken from a trusted proxy if there is one; None on the admin socket."""
    user: str | None = None
    """None: anonymous."""
    groups: frozenset[str] = frozenset()
    networks: frozenset[str] = frozenset()
    """The names in ``access.networks`` that include the address."""
    method: Method = Method.ANONYMOUS
    credential_id: str | None = None
    """The name or id of the token, never a secret."""
    scopes: frozenset[str] | None = None
    """The repositories to which a token of ``/-/token`` is limited, with their registry:
    ``docker.io/library/alpine``. None: there is no limit but the rules."""
    caller: str | None = None
    """Reference to the login that is sent to an upstream, a keyed hash."""

    @property
    def is_operator(self) -> bool:
        """The client may do everything: it has the admin token, or uses the admin socket."""
        return self.method is Method.ADMIN_TOKEN or self.method is Method.SOCKET


OPERATOR: Final = Principal(method=Method.SOCKET)
"""The client of the admin socket."""


@lru_cache(_NETWORKS)
def network_of(address: str | None) -> str:
    """Return the address that identifies a client: an IPv4 address, or the /64 of an IPv6 host.

    On a socket of both versions, IPv4 addresses look like ``::ffff:10.0.0.1``.
    """
    try:
        parsed = ip_address((address or "").partition("%")[0])
    except ValueError:
        return address or ""
    if not isinstance(parsed, IPv6Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ip_network((parsed, 64), strict=False))
