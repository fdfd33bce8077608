"""The seam to durable facts about content: tags, their history, who holds what, last use.

Rows only, never blob bytes. Trouble with the medium is survived and counted here: what cannot be
read is unknown, what cannot be written is forgotten at the next start. Either costs upstream
requests, not correctness: the bytes are the truth.
"""

from collections.abc import Iterable, Iterator
from typing import Protocol

from proxy.names import Digest, Tag, Target
from proxy.records import BlobRecord, ReferrersRecord, Sighting, TagRecord, Usage


class Index(Protocol):
    """Durable facts. Answers for what is warm come without waiting."""

    async def ready(self) -> None:
        """Return once everything held is known: ``usage`` and ``coldest`` are complete."""

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return what the tag pointed to when upstream was last asked."""

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        """Remember the tag, and the sighting in its history."""

    async def drop_tag(self, target: Target, tag: Tag) -> None:
        """Forget where the tag points; its history stays."""

    async def tags(self, target: Target) -> list[Tag]:
        """Return the known tags of a repository, sorted."""

    async def repositories(self) -> list[Target]:
        """Return the repositories with known tags."""

    async def referrers(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what is known to refer to a manifest; empty when nothing is."""

    async def set_referrers(self, target: Target, subject: Digest, record: ReferrersRecord) -> None:
        """Remember what upstream said refers to a manifest."""

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Remember that a held manifest says that it refers to ``subject``."""

    async def history(self, target: Target, tag: Tag) -> tuple[Sighting, ...]:
        """Return the digests the tag has pointed to, latest last; bounded."""

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        """Remember that a repository holds these."""

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Tell whether a repository is known to hold this."""

    async def blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""

    async def set_blob(self, record: BlobRecord) -> None:
        """Remember held content as just used."""

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held here; which repositories hold it upstream stays true."""

    def touch(self, digest: Digest) -> None:
        """Count a use; written in bulk, some seconds later."""

    def coldest(self) -> Iterator[BlobRecord]:
        """Iterate over held content, least recently used first."""

    def usage(self) -> Usage:
        """Return how much is held."""
