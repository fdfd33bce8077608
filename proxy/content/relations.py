"""Which repository holds what, and what refers to a manifest."""

from collections.abc import Iterable
from typing import Final

from proxy.core.names import Digest, Target
from proxy.index import Index


class Links:
    """Which repositories hold a digest upstream. Only these may serve it from here.

    The index documents the verbs that it answers itself.
    """

    def __init__(self, index: Index) -> None:
        self._index = index
        self._presumed: set[tuple[Target, Digest]] = set()
        self.is_confirmed: Final = index.linked
        self.add: Final = index.link
        self.remove: Final = index.unlink
        self.holders: Final = index.holders
        self.of: Final = index.linked_to

    async def has(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository may serve content without a request to upstream."""
        return (target, digest) in self._presumed or await self.is_confirmed(target, digest)

    async def add_public(self, target: Target, digests: Iterable[Digest]) -> None:
        """Record that a repository holds those that are held here and public.

        Anybody can get public content, so a claim in a manifest is enough to link it.
        """
        records = await self._index.records(digests)
        await self.add(target, [one.digest for one in records.values() if one.is_public])

    def presume(self, target: Target, digests: Iterable[Digest]) -> None:
        """Let a repository serve these until the process ends, without a record."""
        self._presumed.update((target, digest) for digest in digests)


class ReferrerRecords:
    """Lists of what refers to a manifest (distribution-spec "Listing Referrers")."""

    def __init__(self, index: Index) -> None:
        self.get: Final = index.referrers
        self.add: Final = index.add_referrer
