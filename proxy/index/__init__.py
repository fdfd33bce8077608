"""The seam to durable facts about content: tags, their history, who holds what, last use.

Rows only, never blob bytes. Trouble with the medium is survived and counted here: what cannot be
read is unknown, what cannot be written is forgotten at the next start. Either costs upstream
requests, not correctness: the bytes are the truth.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, Child, ReferrersRecord, TagHistoryEntry, TagRecord, Usage


class Index(Protocol):
    """Durable facts. Answers for what is warm come without waiting."""

    failure: str | None
    """Why not everything held is known although it should be; None while nothing has failed."""

    loaded_bytes: int
    """Disk bytes of what was held before this start and is known by now."""

    revision: int
    """Grows with every change of where a tag points and of which manifests are held, by whom."""

    async def ready(self) -> None:
        """Return once everything held is known: ``usage`` and ``coldest`` are complete."""

    @property
    def is_ready(self) -> bool:
        """Everything held is known."""

    def damaged(self) -> list[str]:
        """Return what was found damaged and is begun anew: ``tags``, ``blobs`` and so on."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the index's own files, as of a few seconds ago."""

    @property
    def dropped_rows(self) -> int:
        """Rows that could not be read and are deleted."""

    async def note(self, name: str) -> Any:
        """Return what was noted under a name, as JSON values; None for nothing.

        Raises ``StorageError``.
        """

    async def set_note(self, name: str, value: object) -> None:
        """Note a JSON value; it survives a power cut. Raises ``StorageError``."""

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return what the tag pointed to when upstream was last asked."""

    def pointed(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag points as far as it is known by now."""

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord) -> None:
        """Remember the tag, and the sighting in its history."""

    async def drop_tag(self, target: Target, tag: Tag) -> None:
        """Forget where the tag points; its history stays."""

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        """Forget where a tag points and has pointed."""

    async def tags(self, target: Target) -> list[Tag]:
        """Return the known tags of a repository, sorted."""

    async def repositories(self) -> list[Target]:
        """Return the repositories with known tags."""

    def tagged(self) -> Iterator[tuple[Target, Tag, TagRecord]]:
        """Iterate over all tags that are known by now, sorted; may change meanwhile."""

    async def referrers(self, target: Target, subject: Digest) -> ReferrersRecord:
        """Return what is known to refer to a manifest; empty when nothing is."""

    async def set_referrers(self, target: Target, subject: Digest, record: ReferrersRecord) -> None:
        """Remember what upstream said refers to a manifest."""

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Remember that a held manifest says that it refers to ``subject``."""

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        """Return the digests the tag has pointed to, latest last; bounded."""

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        """Remember that a repository holds these."""

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Tell whether a repository is known to hold this."""

    async def holders(self, digest: Digest) -> list[Target]:
        """Return the repositories that are known to hold this."""

    async def linked_to(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        """Return what each repository that is ``wanted`` is known to hold. Looks at all of them."""

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        """Forget that a repository holds these."""

    async def forget_referrers(self, wanted: Callable[[Target], bool]) -> None:
        """Forget what refers to the manifests of each repository that is ``wanted``."""

    async def blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        """Remember held content as just used, and what it lists; None when that is not known."""

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held here; which repositories hold it upstream stays true."""

    def held(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content as far as it is known by now."""

    def shelf(self, number: int) -> list[Digest]:
        """Return what is held of the digests whose first byte is ``number``, sorted."""

    def seen(self, digest: Digest) -> bool:
        """Tell whether content is held, and note that its file is there."""

    def unseen(self) -> list[Digest]:
        """Return what is held and has not been ``seen`` since the last time."""

    def manifests(self) -> Iterator[Digest]:
        """Iterate over the held manifests that list something; may change meanwhile."""

    def is_listed(self, digest: Digest) -> bool:
        """Tell whether a held manifest lists this."""

    def children(self, digest: Digest) -> tuple[Child, ...]:
        """Return what a held manifest lists; empty for everything else."""

    def parents(self, digest: Digest) -> list[Digest]:
        """Return the held manifests that list this. Looks at all of them."""

    def incomplete(self) -> list[Digest]:
        """Return held manifests of which it is not known what they list."""

    def is_incomplete(self, digest: Digest) -> bool:
        """Return whether this is a held manifest of which it is not known what it lists."""

    def touch(self, digest: Digest) -> None:
        """Count a use of content, and with a manifest of what it lists; written in bulk later."""

    async def settle(self) -> None:
        """Return once every use until now is in the order of ``coldest``."""

    def coldest(self) -> Iterator[BlobRecord]:
        """Iterate over held content, least recently used first, a manifest before its content.

        Must not change meanwhile. Uses count once ``settle`` has returned.
        """

    def defer(self, digest: Digest) -> None:
        """Move content to the end of ``coldest``; its last use stays what it is."""

    def usage(self) -> Usage:
        """Return how much is held."""

    async def prune(self, before: float) -> int:
        """Forget rows about content that is neither held nor listed by what is held.

        Tags and referrers only when they were last confirmed before ``before``, Unix seconds; who
        holds what only when it has not been asked for lately. Returns how many rows went. Raises
        ``StorageError``.
        """
