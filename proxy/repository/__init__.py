"""The read-through: every pull is a hit, a join, or one fetch.

``manifests``, ``tags``, ``blobs``, ``referrers`` and ``listings`` answer for one kind each, from
``content`` or from the upstreams in ``origins``; ``results`` are what they return. ``small_blobs``
keeps small blobs in RAM, ``memory_lookup`` answers without waiting, ``prefetch`` fetches blobs
before clients request them, ``link_checks`` confirms links of held content, and ``redirects`` lets
clients read from the bucket. There is no policy here (``core.policy`` decides) and no HTTP. If the
disk fails, content is passed through.
"""

from typing import NamedTuple

from proxy.core.names import Digest, Target
from proxy.repository.blobs import Blobs
from proxy.repository.link_checks import LinkChecks
from proxy.repository.listings import Listings
from proxy.repository.manifests import Manifests
from proxy.repository.prefetch import Prefetcher
from proxy.repository.redirects import Redirects
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
    prefetcher: Prefetcher
    link_checks: LinkChecks
    redirects: Redirects | None = None

    async def fetch(self, target: Target, digest: Digest, media_type: str | None) -> bool:
        """Fetch content that is not held; return True if it is held now.

        ``media_type`` is None for a blob. Raises ``RegistryError``.
        """
        if media_type is not None:
            return await self.manifests.restore(target, digest)
        return await self.blobs.fetch(target, digest)
