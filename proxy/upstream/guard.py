"""Where an upstream may send us: redirects and token servers, by address.

A public upstream cannot point us at private, loopback or link-local addresses, neither literally
nor by DNS. An upstream that is itself private may; so may hosts that its operator listed.
"""

import socket
from collections.abc import Iterable

from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver

from proxy.errors import UpstreamUnavailable
from proxy.upstream.addresses import is_private


class Guard:
    """Decides for one upstream. Learns whether it is public when its own name is resolved."""

    def __init__(self, own: str, trusted: Iterable[str]) -> None:
        self._own = own
        self._trusted = frozenset(trusted)
        self._dialled: frozenset[str] = frozenset()
        self._is_private = is_private(own)

    def permit_dialling(self, hosts: Iterable[str]) -> None:
        """Permit our own HTTP proxies to be private; nobody may send us there all the same."""
        self._dialled |= frozenset(hosts)

    def check(self, host: str) -> None:
        """Raise ``UpstreamUnavailable`` when ``host`` is an address that we may not be sent to."""
        if is_private(host) and not self._may_be_private(host):
            raise UpstreamUnavailable(f"{self._own} sends us to the private address {host}")

    def permitted(self, host: str, addresses: list[ResolveResult]) -> list[ResolveResult]:
        """Return the addresses of ``host`` that may be dialled."""
        if host == self._own:
            self._is_private = bool(addresses) and all(
                is_private(address["host"]) for address in addresses
            )
        if self._may_be_private(host) or host in self._dialled:
            return addresses
        return [address for address in addresses if not is_private(address["host"])]

    def _may_be_private(self, host: str) -> bool:
        return self._is_private or host == self._own or host in self._trusted


class GuardedResolver(AbstractResolver):
    """Resolves through the system, and leaves out what the guard does not permit."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._system = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Return the addresses of ``host``. Raises ``OSError`` when none may be dialled."""
        addresses = self._guard.permitted(host, await self._system.resolve(host, port, family))
        if not addresses:
            raise OSError(None, f"{host} has private addresses only")
        return addresses

    async def close(self) -> None:
        """Let go of the system's resolver."""
        await self._system.close()
