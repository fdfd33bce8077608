"""Names that lead to fakes, two of whose addresses count as public: a network for tests.

Guards and credentials depend on public names and addresses, and fakes listen on loopback.
"""

import socket

from aiohttp.abc import AbstractResolver, ResolveResult

from proxy.upstream.guard import Network, is_private

PUBLIC = frozenset({"127.0.0.1", "127.0.0.2"})
PRIVATE = "127.0.0.9"


class Names:
    """The addresses of names; change them at any time. Unknown names do not resolve."""

    def __init__(self, addresses: dict[str, list[str]]) -> None:
        self.addresses = addresses
        self.asked: list[str] = []

    @property
    def network(self) -> Network:
        """What the proxy is started with."""
        return Network(lambda: _Resolver(self), is_private_here)


def is_private_here(host: str) -> bool:
    """As in the world, but for the two addresses that count as public."""
    return host not in PUBLIC and is_private(host)


class _Resolver(AbstractResolver):
    def __init__(self, names: Names) -> None:
        self._names = names

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self._names.asked.append(host)
        if host not in self._names.addresses:
            raise OSError(None, f"{host} is not known")
        return [
            ResolveResult(
                hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0
            )
            for address in self._names.addresses[host]
        ]

    async def close(self) -> None:
        pass
