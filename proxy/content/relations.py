"""Which repository holds what, and what refers to a manifest."""

from collections.abc import Callable, Iterable

from proxy.core.names import Digest, Target
from proxy.core.records import ReferrersRecord
from proxy.index import Index


class Links:
    """Which repositories hold a digest upstream. Only these may serve it from here."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._presumed: set[tuple[Target, Digest]] = set()

    async def has(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository may serve content without a question to upstream."""
        return (target, digest) in self._presumed or await self.is_confirmed(target, digest)

    async def is_confirmed(self, target: Target, digest: Digest) -> bool:
        """Return True if upstream has said or shown that a repository holds this."""
        return await self._index.linked(target, digest)

    async def add(self, target: Target, digests: Iterable[Digest]) -> None:
        """Record that a repository holds these."""
        await self._index.link(target, digests)

    async def add_public(self, target: Target, digests: Iterable[Digest]) -> None:
        """Record that a repository holds those that are held here and public.

        Anybody can get public content, so for this the word of a manifest is enough.
        """
        records = [await self._index.blob(digest) for digest in digests]
        public = [one.digest for one in records if one is not None and one.is_public]
        await self._index.link(target, public)

    def presume(self, target: Target, digests: Iterable[Digest]) -> None:
        """Let a repository serve these until the process ends, without a record."""
        self._presumed.update((target, digest) for digest in digests)

    async def remove(self, target: Target, digests: Iterable[Digest]) -> None:
        """Forget that a repository holds these."""
        await self._index.unlink(target, digests)

    async def holders(self, digest: Digest) -> list[Target]:
        """Return the repositories that are known to hold this, the latest last."""
        return await self._index.holders(digest)

    async def of(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        """Return what each repository that is ``wanted`` holds. Costs a look at all links."""
        return await self._index.linked_to(wanted)


class ReferrerRecords:
    """Lists of what refers to a manifest (distribution-spec "Listing Referrers")."""

    def __init__(self, index: Index) -> None:
        self._index = index

    async def get(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what is known to refer to a manifest; empty when nothing is."""
        return await self._index.referrers(target, subject)

    async def set(self, target: Target, subject: Digest, record: ReferrersRecord) -> None:
        """Record the list that upstream gave."""
        await self._index.set_referrers(target, subject, record)

    async def add(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Record that a held manifest names ``subject`` as its subject."""
        await self._index.add_referrer(target, subject, entry)

    async def forget(self, wanted: Callable[[Target], bool]) -> None:
        """Forget the lists of each repository that is ``wanted``."""
        await self._index.forget_referrers(wanted)
