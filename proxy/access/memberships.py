"""The networks and groups of ``access`` that contain a principal."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from ipaddress import ip_address, ip_network
from typing import Final

from proxy.access.principals import Principal

_CACHED: Final = 4096


class Memberships:
    """Adds to a principal its networks, and the groups that the configuration lists."""

    def __init__(
        self, networks: Mapping[str, Iterable[str]], groups: Mapping[str, Iterable[str]]
    ) -> None:
        self._networks = [
            (name, ip_network(network)) for name, listed in networks.items() for network in listed
        ]
        self._groups = {name: frozenset(users) for name, users in groups.items()}
        is_empty = not self._networks and not self._groups
        complete = _unchanged if is_empty else lru_cache(_CACHED)(self._complete)
        self.complete: Callable[[Principal], Principal] = complete

    def _complete(self, principal: Principal) -> Principal:
        """Return the principal with its memberships."""
        groups = {name for name, users in self._groups.items() if principal.user in users}
        networks = self._networks_of(principal.address)
        if not groups and networks == principal.networks:
            return principal
        return replace(principal, groups=principal.groups | groups, networks=networks)

    def _networks_of(self, address: str | None) -> frozenset[str]:
        """Return the names of the networks; none for an address that is not one."""
        if not self._networks or address is None:
            return frozenset()
        try:
            parsed = ip_address(address.partition("%")[0])
        except ValueError:
            return frozenset()
        known = getattr(parsed, "ipv4_mapped", None) or parsed
        return frozenset(name for name, network in self._networks if known in network)


def _unchanged(principal: Principal) -> Principal:
    """Return a principal unchanged: the configuration adds nothing."""
    return principal
