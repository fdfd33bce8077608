"""The read-through: every pull is a hit, a join, or one fetch.

``content`` is what lies here, ``sources`` is where the rest comes from; ``manifests``, ``tags``,
``blobs``, ``referrers`` and ``listings`` answer for one kind each, ``answers`` is what they return.
``small`` keeps small blobs in RAM, ``at_hand`` tells what needs no waiting, and ``ahead`` fetches
what has not been asked for yet. ``sweeps`` confirms what manifests claim of held content.
No policy (``policy`` decides), no HTTP. Trouble with the disk degrades to passing through.
"""

from typing import NamedTuple

from proxy.core.names import Digest, Target
from proxy.repository.blobs import Blobs
from proxy.repository.link_checks import LinkChecks
from proxy.repository.listings import Listings
from proxy.repository.manifests import Manifests
from proxy.repository.prefetch import Prefetcher
from proxy.repository.referrers import ReferrersCache
from proxy.repository.small_blobs import SmallBlobs
from proxy.repository.tags import Tags


class Cache(NamedTuple):
    """The cache of each kind of content."""

    manifests: Manifests
    tags: Tags
    blobs: Blobs
    small: SmallBlobs
    listings: Listings
    referrers: ReferrersCache
    ahead: Prefetcher
    sweeps: LinkChecks

    async def fetch(self, target: Target, digest: Digest, media_type: str | None) -> bool:
        """Have content here that is not; tell whether it is now. ``media_type`` None: a blob.

        Raises ``RegistryError``.
        """
        if media_type is not None:
            return await self.manifests.restore(target, digest)
        return await self.blobs.fetch(target, digest)
