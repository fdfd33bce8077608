"""What the index forgets because somebody wants it forgotten: tags, and who holds what."""

from collections.abc import Callable, Iterable
from functools import partial

from proxy.core.names import Digest, Tag, Target
from proxy.index.links import Links
from proxy.index.tables import Tables
from proxy.index.tags import Tags
from proxy.index.worker import Worker


class Forgetting:
    """Deletes rows of chosen repositories."""

    def __init__(self, tables: Tables, worker: Worker, links: Links, tags: Tags) -> None:
        self._tables = tables
        self._worker = worker
        self._links = links
        self._tags = tags

    async def tag(self, target: Target, tag: Tag) -> None:
        """Forget where a tag points and has pointed."""
        await self._tags.forget([(target, tag)])

    async def linked(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        """Return what each of some repositories is known to hold. Raises ``StorageError``."""
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
        """Forget what refers to the manifests of some repositories. Raises ``StorageError``."""
        async for subjects in self._worker.batches(self._tables.subjects):
            rows = [row for row in subjects if wanted(row.target)]
            await self._worker.survive(partial(self._tables.forget_subjects, rows), None)
