"""What the index forgets for good: rows that nothing needs, and what somebody wants forgotten."""

from collections.abc import Callable, Iterable

from proxy.index.ledger import Ledger
from proxy.index.links import Links
from proxy.index.tables import Tables
from proxy.index.worker import Worker
from proxy.names import Digest, Tag, Target


class Forgetting:
    """Deletes rows. ``forget_tag`` deletes where a tag points from the mirror in RAM."""

    def __init__(
        self,
        tables: Tables,
        links: Links,
        worker: Worker,
        ledger: Ledger,
        forget_tag: Callable[[Target, Tag], bool],
    ) -> None:
        self._tables = tables
        self._links = links
        self._worker = worker
        self._ledger = ledger
        self._forget_tag = forget_tag

    async def tag(self, target: Target, tag: Tag) -> None:
        """Forget where a tag points and has pointed."""
        self._forget_tag(target, tag)
        await self._worker.survive(lambda: self._tables.forget_tags([(target, tag)]), None)

    async def linked(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        """Return what each of some repositories is known to hold."""
        found: dict[Target, set[Digest]] = {}
        async for rows in self._worker.batches(self._tables.all_holders):
            for digest, holders in rows:
                for target in filter(wanted, holders):
                    found.setdefault(target, set()).add(digest)
        return found

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        """Forget that a repository holds these."""
        await self._links.remove(target, digests)

    async def referrers(self, wanted: Callable[[Target], bool]) -> None:
        """Forget what refers to the manifests of some repositories."""
        async for subjects in self._worker.batches(self._tables.subjects):
            rows = [row for row in subjects if wanted(row.target)]
            await self._worker.survive(
                lambda rows=rows: self._tables.forget_subjects(rows),  # type: ignore[misc]
                None,
            )

    async def prune(self, before: float) -> int:
        """Forget rows about content that is neither held nor listed; return how many went.

        Tags and referrers go only when they were last confirmed before ``before``, Unix seconds.
        """
        pruned = await self._links.prune(self._ledger.is_known)
        async for subjects in self._worker.batches(self._tables.subjects):
            unknown = [
                row
                for row in subjects
                if row.checked_at < before and not self._ledger.is_known(row.subject)
            ]
            await self._worker.survive(
                lambda rows=unknown: self._tables.forget_subjects(rows),  # type: ignore[misc]
                None,
            )
            pruned += len(unknown)
        async for tagged in self._worker.batches(self._tables.all_tags):
            old = [
                (row.target, row.tag)
                for row in tagged
                if row.seen_at < before
                and not (row.record and self._ledger.is_known(row.record.descriptor.digest))
            ]
            for target, tag in old:
                self._forget_tag(target, tag)
            await self._worker.survive(
                lambda rows=old: self._tables.forget_tags(rows),  # type: ignore[misc]
                None,
            )
            pruned += len(old)
        return pruned
