"""The seam to durable facts: what is held, who holds it, where tags point, and notes.

Rows only, never the bytes of blobs. An index is complete as soon as it is open. Answers come from a
bounded cache in RAM, without suspending, when they are there. A write changes that cache at once,
and returns when its row survives the end of the process.

Failures of the disk are survived and counted. A fact that cannot be read is unknown. A fact that
cannot be written stays in RAM and is written again later. Both cost requests to upstreams, not
correctness. Verbs that return a page, notes, ``weights``, ``listings``, ``loose_files``,
``linked_to``, ``repositories`` and ``prune`` raise ``StorageError`` instead: an empty page would
say that there is nothing.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple, Protocol, TypeVar

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, Child, TagHistoryEntry, TagRecord, Usage

Position = tuple[float, int]
"""Where a page of ``coldest`` ended."""

Row = TypeVar("Row")
Place = TypeVar("Place")

HISTORY_LIMIT = 50
"""Entries of a tag's history."""

REFERRERS_LIMIT = 10_000
REFERRERS_BYTES = 4 * 1024 * 1024
"""Of one subject. As large as a manifest that every client reads: a list of referrers is one."""


class TaggedImage(NamedTuple):
    """A tag, the manifest that it points to if that is held, and whether it is linked there."""

    target: Target
    tag: Tag
    record: TagRecord
    held: BlobRecord | None
    is_linked: bool

    @property
    def digest(self) -> Digest:
        """The digest that the tag points to."""
        return self.record.descriptor.digest

    @property
    def name(self) -> str:
        """The image's name, as in a pin."""
        return f"{self.target}:{self.tag}"


class Index(Protocol):
    """Durable facts. A ``peek`` never waits: a fact that it would have to wait for is unknown."""

    revision: int
    """Grows when a tag points elsewhere, and when held manifests or their holders change."""

    @property
    def failure(self) -> str | None:
        """Why new facts are lost at the next start; None if they are not."""

    @property
    def damaged(self) -> str | None:
        """Where a damaged file lies that was replaced; None if there was none."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the index's own files, as of a few seconds ago."""

    @property
    def dropped_rows(self) -> int:
        """Rows that could not be read and were left out."""

    def usage(self) -> Usage:
        """Return how much is held, exactly."""

    def touch(self, digest: Digest) -> None:
        """Count a use of held content. A use of a manifest is a use of all that it lists."""

    def peek_blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""

    def peek_tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag points."""

    def peek_linked(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository is known to hold this."""

    async def blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""

    async def records(self, digests: Iterable[Digest]) -> dict[Digest, BlobRecord]:
        """Return the records of those that are held."""

    async def children(self, digest: Digest) -> tuple[Child, ...] | None:
        """Return what a held manifest lists, () for other content; None if that is unknown.

        The size of a child is that of the held content; of what is not held, the smallest that any
        manifest claims: a false claim must not make an image too large.
        """

    async def parents(self, digest: Digest) -> list[Digest]:
        """Return the held manifests that list this."""

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        """Hold content, and remember what it lists; None if that is unknown.

        Its file is no longer loose. Raises ``ValueError`` for a size out of bounds.
        """

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Forget that content is held. Links and tags stay. Its file is loose from here on."""

    async def loosen_files(self, digests: Iterable[Digest]) -> None:
        """Remember that files of these may be there although nothing holds them."""

    async def forget_files(self, digests: Iterable[Digest]) -> None:
        """Forget loose files: they are gone."""

    async def loose_files(self) -> list[Digest]:
        """Return whose files may be there without being held."""

    async def coldest(
        self, after: Position | None, limit: int
    ) -> list[tuple[Position, BlobRecord]]:
        """Return a page of held content, least recently used first, with where each stands.

        A manifest comes before its content. All uses until now count.
        """

    async def weights(self, digests: Iterable[Digest]) -> dict[Digest, int]:
        """Return the disk bytes of what is held of each manifest's tree; shared content once."""

    async def listings(self, digests: Iterable[Digest]) -> dict[Digest, int]:
        """Return how many held manifests list each of these."""

    async def blobs(self, after: Digest | None, limit: int) -> list[BlobRecord]:
        """Return a page of held content, in the order of the digests' bytes."""

    async def incomplete(self, after: Digest | None, limit: int) -> list[Digest]:
        """Return a page of the held manifests of which it is unknown what they list."""

    async def untagged(self, after: Digest | None, limit: int) -> list[tuple[Target, BlobRecord]]:
        """Return a page of held manifests without a name, each with a repository that holds it.

        Those that list something, that no held manifest lists, and to which no tag of a repository
        points that holds them.
        """

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        """Remember that a repository holds these."""

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        """Forget that a repository holds these, what they refer to, and what refers to them."""

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository is known to hold this."""

    async def holders(self, digest: Digest) -> list[Target]:
        """Return the repositories that are known to hold this, the newest last."""

    async def linked_to(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        """Return what each repository that is ``wanted`` is known to hold. Reads all links."""

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return where a tag pointed when upstream was last asked."""

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        """Remember where a tag points, also in its history; None: nowhere, its history stays."""

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        """Forget a tag and its history."""

    async def tags(self, target: Target) -> list[Tag]:
        """Return the known tags of a repository, sorted."""

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        """Return the last digests that a tag pointed to, the latest last."""

    async def add_history(
        self, target: Target, tag: Tag, entries: Iterable[TagHistoryEntry]
    ) -> None:
        """Merge what another cache saw into the history of a tag."""

    async def repositories(self) -> list[Target]:
        """Return the repositories with known tags, sorted."""

    async def search(
        self, after: tuple[Target, Tag] | None, limit: int, digest: Digest | None = None
    ) -> list[TaggedImage]:
        """Return a page of all tags, or of those that point to ``digest``, sorted."""

    async def referrers(self, target: Target, subject: Digest) -> tuple[dict[str, object], ...]:
        """Return the descriptors of held manifests that say that they refer to ``subject``."""

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Remember that a held manifest refers to ``subject``. The newest are kept."""

    async def note(self, name: str) -> Any:
        """Return the JSON value that was noted under a name; None for nothing."""

    async def set_note(self, name: str, value: object) -> None:
        """Note a JSON value. It survives a power cut."""

    async def prune(self, before: float) -> int:
        """Forget rows about content that is neither held nor listed by held manifests.

        Only those that were confirmed before ``before``, Unix seconds. Returns their number.
        """


async def pages(
    read: Callable[[Place | None, int], Awaitable[list[Row]]],
    place: Callable[[Row], Place],
    limit: int,
    after: Place | None = None,
) -> AsyncIterator[list[Row]]:
    """Yield all pages of a verb that takes ``after`` and ``limit``. Raises ``StorageError``.

    ``place`` returns the ``after`` that continues behind a row. Rows that change meanwhile are as
    of their page.
    """
    while page := await read(after, limit):
        yield page
        after = place(page[-1])
