"""Where an upstream may send us: redirects and token servers, by address.

A public upstream cannot point us at private, loopback or link-local addresses, neither literally
nor by DNS. Whether an upstream is public is a matter of configuration and never of DNS, because
whoever owns a name can change its address at any time ("DNS rebinding").
"""

import socket
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from proxy.core.errors import UpstreamUnavailable
from proxy.upstream.addresses import is_local_name, is_private


@dataclass(frozen=True, slots=True)
class Network:
    """How names become addresses, and which addresses count as private.

    The default is the system's resolver and the public registries of addresses.
    """

    resolver: Callable[[], AbstractResolver] = field(default=ThreadedResolver)
    is_private: Callable[[str], bool] = field(default=is_private)


SYSTEM_NETWORK: Final = Network()


class Guard:
    """Decides for the upstream at ``own``. ``trusted`` are hosts that its operator listed.

    There are four cases of a host with a private address:

    - The upstream is private: its configuration says so, or its address is written as a private
      one. It may send us anywhere.
    - The host is ``trusted``. The operator named it, so it may be dialled.
    - The host and port are those in the upstream's own ``url``. The operator named them too, so
      that a registry of an intranet works under its name. Another port of that host is refused.
    - Any other host is refused.
    """

    def __init__(
        self, own: URL, trusted: Iterable[str], *, private: bool, network: Network
    ) -> None:
        self._own = own
        self._trusted = frozenset(trusted)
        self._proxies: frozenset[tuple[str, int]] = frozenset()
        self._is_private_address = network.is_private
        host = own.host or ""
        self._allows_private = private or network.is_private(host) or is_local_name(host)
        self.resolver = network.resolver

    def permit_dialling(self, proxies: Iterable[URL]) -> None:
        """Permit our own HTTP proxies to be private."""
        self._proxies |= frozenset((proxy.host or "", proxy.port or 0) for proxy in proxies)

    def check(self, url: URL) -> None:
        """Raise ``UpstreamUnavailable`` if we may not be sent to the address in ``url``."""
        host = url.host or ""
        if self._is_private_address(host) and not self._may_be_private(host, url.port):
            raise UpstreamUnavailable(
                f"{self._own.host} sends us to the private address {host}; "
                "if both are in your network, set private: true for this upstream"
            )

    def permitted(
        self, host: str, port: int, addresses: list[ResolveResult]
    ) -> list[ResolveResult]:
        """Return the addresses of ``host`` that may be dialled at ``port``."""
        if self._may_be_private(host, port) or (host, port) in self._proxies:
            return addresses
        return [entry for entry in addresses if not self._is_private_address(entry["host"])]

    def _may_be_private(self, host: str, port: int | None) -> bool:
        is_own = (host, port) == (self._own.host, self._own.port)
        return self._allows_private or is_own or host in self._trusted


class GuardedResolver(AbstractResolver):
    """Resolves through the network, and leaves out what the guard does not permit."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._network = guard.resolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of ``host``. Raises ``OSError`` when none may be dialled."""
        found = await self._network.resolve(host, port, family)
        addresses = self._guard.permitted(host, port, found)
        if not addresses:
            raise OSError(
                None,
                f"{host} has private addresses only; "
                "if it is in your network, set private: true for this upstream",
            )
        return addresses

    async def close(self) -> None:
        """Close the network's resolver."""
        await self._network.close()
