"""The interface to durable facts: held content, links of repositories, tags, and notes.

Rows only, never the bytes of blobs. An index is complete as soon as it is open. Facts in its
bounded cache in RAM are returned without suspending. A write changes that cache at once, and
returns when its row survives the end of the process.

Failures of the disk are handled and counted. A fact that cannot be read is unknown. A fact that
cannot be written stays in RAM and is written again later. Both cost requests to upstreams, not
correctness. Verbs that return a page, notes, ``last_uses``, ``weights``, ``listings``,
``listed_by_others``, ``loose_files``, ``linked_to``, ``repositories`` and ``prune`` raise
``StorageError`` instead, because an empty page would be a false answer.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Set
from typing import Any, NamedTuple, Protocol, TypeVar

from proxy.core.names import Digest, Tag, Target
from proxy.core.records import BlobRecord, Child, ImageSet, TagHistoryEntry, TagRecord, Usage

Position = tuple[float, int]
"""The position at which a page of ``coldest`` ended."""

Row = TypeVar("Row")
Place = TypeVar("Place")

Tree = dict[Digest, int]
"""A manifest with all content below it; with disk bytes, 0 for content that is not held."""

REFERRERS_LIMIT = 10_000
REFERRERS_BYTES = 4 * 1024 * 1024
"""Of one subject. As large as a manifest that every client reads: a list of referrers is one."""


class TaggedImage(NamedTuple):
    """A tag, its manifest if that is held, and whether its repository has a link to it."""

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


class Weight(NamedTuple):
    """How much of a manifest's tree is held: disk bytes, shared content once.

    ``missing`` are the pieces that a client would still need. An image below an index is enough,
    so of an index it is those of the most complete image.
    """

    held_bytes: int
    missing: int


class Index(Protocol):
    """Durable facts. A ``peek`` never waits: a fact that it would have to wait for is unknown."""

    revision: int
    """Grows when a tag moves, and when held manifests or their repositories change."""

    @property
    def failure(self) -> str | None:
        """The reason why new facts are lost at the next start; None if they are not."""

    @property
    def damaged(self) -> str | None:
        """The path of a damaged file that was replaced; None if there was none."""

    @property
    def file_bytes(self) -> int:
        """Bytes of the index files, as of a few seconds ago."""

    @property
    def dropped_rows(self) -> int:
        """Number of deleted rows that could not be read."""

    def usage(self) -> Usage:
        """Return the exact usage of held content."""

    def touch(self, digest: Digest) -> None:
        """Count a use of held content. A use of a manifest is a use of all its content."""

    def peek_blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""

    def peek_tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return the record of a tag."""

    def peek_linked(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository has a link to this digest."""

    async def blob(self, digest: Digest) -> BlobRecord | None:
        """Return the record of held content."""

    async def records(self, digests: Iterable[Digest]) -> dict[Digest, BlobRecord]:
        """Return the records of the held digests."""

    async def children(self, digest: Digest) -> tuple[Child, ...] | None:
        """Return the children of a held manifest, () for other content; None if unknown.

        The size of a held child is its real size; of other children, the smallest size in any
        manifest: a false claim must not make an image too large.
        """

    async def parents(self, digest: Digest) -> list[Digest]:
        """Return the held manifests that list a digest."""

    async def listed_by_others(
        self, digests: Iterable[Digest], besides: Set[Digest]
    ) -> set[Digest]:
        """Return those of ``digests`` that a held manifest lists that is not in ``besides``."""

    async def set_blob(self, record: BlobRecord, children: Iterable[Child] | None = ()) -> None:
        """Record held content and its children; None if they are unknown.

        Its file is no longer loose. Raises ``ValueError`` for a size out of bounds.
        """

    async def drop_blobs(self, digests: Iterable[Digest]) -> None:
        """Delete the records of content. Links and tags stay. Its file is then loose."""

    async def add_loose_files(self, digests: Iterable[Digest]) -> None:
        """Record that files of these digests may exist without a record."""

    async def delete_loose_files(self, digests: Iterable[Digest]) -> None:
        """Delete the records of loose files that are gone."""

    async def loose_files(self) -> list[Digest]:
        """Return the digests whose files may exist without a record."""

    async def coldest(
        self, after: Position | None, limit: int
    ) -> list[tuple[Position, BlobRecord]]:
        """Return a page of held content, least recently used first, with the position of each.

        A manifest comes before its content. All uses until now are included, and the records have
        the last uses.
        """

    async def last_uses(self, digests: Iterable[Digest]) -> dict[Digest, float]:
        """Return the last uses of the held digests, those of manifests that list them included."""

    async def trees(self, digests: Iterable[Digest]) -> dict[Digest, Tree]:
        """Return the tree of each digest."""

    async def weights(self, digests: Iterable[Digest]) -> dict[Digest, Weight]:
        """Return the weight of each held digest."""

    async def listings(self, digests: Iterable[Digest]) -> dict[Digest, int]:
        """Return the number of held manifests that list each digest."""

    async def blobs(self, after: Digest | None, limit: int) -> list[BlobRecord]:
        """Return a page of held content, in the order of the digests' bytes."""

    async def incomplete(self, after: Digest | None, limit: int) -> list[Digest]:
        """Return a page of the held manifests whose children are unknown."""

    async def untagged(self, after: Digest | None, limit: int) -> list[tuple[Target, BlobRecord]]:
        """Return a page of held manifests without a name, each with a linked repository.

        These are manifests with children that no held manifest lists, and to which no tag of a
        linked repository points.
        """

    async def link(self, target: Target, digests: Iterable[Digest]) -> None:
        """Record links from a repository to these digests."""

    async def unlink(self, target: Target, digests: Iterable[Digest]) -> None:
        """Delete the links of a repository to these digests, and their referrers."""

    async def linked(self, target: Target, digest: Digest) -> bool:
        """Return True if a repository has a link to this digest."""

    async def holders(self, digest: Digest) -> list[Target]:
        """Return the repositories with a link to this digest, the newest last."""

    async def linked_to(self, wanted: Callable[[Target], bool]) -> dict[Target, set[Digest]]:
        """Return the links of each repository that is ``wanted``. Reads all links."""

    async def tag(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return the record of a tag, as of the last answer of upstream."""

    async def set_tag(self, target: Target, tag: Tag, record: TagRecord | None) -> None:
        """Set the record of a tag, and extend its history; None: deleted, its history stays."""

    async def forget_tag(self, target: Target, tag: Tag) -> None:
        """Delete a tag and its history."""

    async def tags(self, target: Target) -> list[Tag]:
        """Return the known tags of a repository, sorted."""

    async def history(self, target: Target, tag: Tag) -> tuple[TagHistoryEntry, ...]:
        """Return the last digests of a tag, the latest last."""

    async def add_history(
        self, target: Target, tag: Tag, entries: Iterable[TagHistoryEntry]
    ) -> None:
        """Merge the history of another cache into that of a tag."""

    async def add_images(self, images: ImageSet) -> None:
        """Record images in one step: all or, if that fails, none. It survives a power cut.

        Raises ``StorageError``.
        """

    async def repositories(self) -> list[Target]:
        """Return the repositories with known tags, sorted."""

    async def search(
        self, after: tuple[Target, Tag] | None, limit: int, digest: Digest | None = None
    ) -> list[TaggedImage]:
        """Return a page of all tags, or of those that point to ``digest``, sorted."""

    async def referrers(self, target: Target, subject: Digest) -> tuple[dict[str, object], ...]:
        """Return the descriptors of held manifests whose ``subject`` is this digest."""

    async def add_referrer(self, target: Target, subject: Digest, entry: dict[str, object]) -> None:
        """Record that a held manifest refers to ``subject``. The newest are kept."""

    async def note(self, name: str) -> Any:
        """Return the JSON value of a note; None without one."""

    async def set_note(self, name: str, value: object) -> None:
        """Store a JSON value as a note. It survives a power cut."""

    async def prune(self, before: float) -> int:
        """Delete rows about content that is neither held nor listed by held manifests.

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
