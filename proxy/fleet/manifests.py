"""Manifests by digest for the fleet: one replica asks the registry, the others ask that one."""

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from proxy.core.errors import NotFound, UpstreamFailure
from proxy.core.names import Digest, Target
from proxy.core.sources import SharedManifest, SharedManifests
from proxy.fleet.leases import LEASE_SECONDS, LeaseHolder, Leases
from proxy.fleet.peers import NotYet, Peers
from proxy.fleet.protocol import MANIFESTS, ContentRequest
from proxy.fleet.small_content import SmallContent
from proxy.runtime.singleflight import SingleFlight

FETCH_SECONDS: Final = 8.0
"""How long one replica may take to fetch a manifest before another one tries."""

_PAUSE: Final = 0.1


class Manifests:
    """Manifests from other machines: from the replica that fetches one, then from ``sources``.

    Without a manifest there, this replica has the lease for it.
    """

    def __init__(self, leases: Leases, peers: Peers, sources: Sequence[SharedManifests]) -> None:
        self._leases = leases
        self._peers = peers
        self._sources = sources
        self._running: SingleFlight[SharedManifest | None] = SingleFlight("ask for a manifest")

    async def manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        """Return a manifest that the repository holds, None if the registry has to be asked."""
        return await self._running.do((target, digest), lambda: self._manifest(target, digest))

    async def close(self) -> None:
        """Cancel running requests."""
        await self._running.close()

    async def _manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        if self._leases.owns(target.upstream, digest):  # another request has asked, and found none
            return None
        found = await self._fetched_now(target, digest)
        for source in self._sources:
            if found is not None:
                break
            found = await source.manifest(target, digest)
            if found is not None and isinstance(source, SmallContent):
                self._leases.follow(digest)
        return found

    async def _fetched_now(self, target: Target, digest: Digest) -> SharedManifest | None:
        """Return the manifest that another replica is fetching, None if no replica fetches it.

        A live replica that answers that it does not fetch it will not: its registry has refused.
        """
        wanted = ContentRequest(MANIFESTS, target, digest, live=True)
        began = time.monotonic()
        while isinstance(held := await self._acquire(target, digest), LeaseHolder):
            try:
                found = await self._peers.manifest(held.address, wanted)
            except NotYet:
                limit = FETCH_SECONDS
            except NotFound:
                return None
            except UpstreamFailure:
                limit = LEASE_SECONDS
            else:
                self._leases.follow(digest)
                return found
            if time.monotonic() - began > limit:
                return None
            await asyncio.sleep(_PAUSE)
        return None

    async def _acquire(self, target: Target, digest: Digest) -> object:
        return await self._leases.acquire(target.upstream, digest, FETCH_SECONDS)
