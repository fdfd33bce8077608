"""Delegates a download to another replica with free space, so that the registry sends it once."""

import asyncio
import time
from collections.abc import Callable, Iterable
from hashlib import blake2b
from typing import Final

from proxy.core.errors import BlobUnknown, NotFound, UpstreamFailure
from proxy.core.names import Digest, Target
from proxy.core.sources import Body, Place, Priority
from proxy.fleet.leases import OPEN_SECONDS
from proxy.fleet.peers import NotYet, PeerBody, Peers
from proxy.fleet.protocol import BLOBS, ContentRequest

MAX_ASKED: Final = 3
"""Maximum number of replicas to try in turn; each may be full as well."""

_PAUSE: Final = 0.1


class DelegatedSource:
    """The replicas with free space. ``others`` returns the addresses of those that are alive."""

    place: Final = Place.PEER

    def __init__(self, peers: Peers, others: Callable[[], Iterable[str]]) -> None:
        self._peers = peers
        self._others = others

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a blob from ``offset`` on as it arrives at another replica.

        Raises ``BlobUnknown`` if none can store it, or this replica can.
        """
        if priority is Priority.PASS_THROUGH:
            wanted = ContentRequest(BLOBS, target, digest, offset, live=True, begin=True)
            for address in self._chosen(digest):
                try:
                    return await self._opened(address, wanted)
                except (NotFound, UpstreamFailure):
                    continue
        raise BlobUnknown(f"{target}@{digest}: no other replica fetches it")

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        """Raise ``BlobUnknown``: a download in progress is not verified yet."""
        raise BlobUnknown(f"{target}@{digest} is not proven yet")

    def reject(self, digest: Digest) -> None:
        """Do nothing: the other replica verifies the blob itself."""

    def _chosen(self, digest: Digest) -> list[str]:
        """Return replicas in an order that depends only on the digest (rendezvous hashing)."""

        def weight(address: str) -> bytes:
            return blake2b(f"{digest} {address}".encode(), digest_size=8).digest()

        known = [one for one in self._others() if not self._peers.is_skipped(one)]
        return sorted(known, key=weight)[:MAX_ASKED]

    async def _opened(self, address: str, wanted: ContentRequest) -> PeerBody:
        """Return the body once the registry has answered there. Raises as ``Peers.open``."""
        end = time.monotonic() + OPEN_SECONDS
        while True:
            try:
                return await self._peers.open(address, wanted)
            except NotYet:
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(_PAUSE)
