"""The interface to other replicas: who checks a tag, the result, and the names of digests."""

from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from proxy.content.facts import Tags
from proxy.core.names import Digest, Tag, Target
from proxy.core.records import TagRecord


class Check(Protocol):
    """One check of a tag at the registry. ``known``: no check is needed, this is the result."""

    @property
    def known(self) -> TagRecord | None:
        """The recent result of another replica."""

    async def settle(self, record: TagRecord) -> TagRecord:
        """Record the registry's answer; return the newest record, which may be newer."""

    async def gone(self) -> None:
        """Publish that the registry has deleted the tag. The record stays."""


class Sharing(Protocol):
    """The facts about tags that replicas share."""

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return and record an unknown tag, None if no replica knows it."""

    def check(self, target: Target, tag: Tag, max_age: float) -> AbstractAsyncContextManager[Check]:
        """Open a check; a ``known`` result is from the last ``max_age`` seconds."""


class Names(Protocol):
    """Which tags and indexes have named a digest, on any replica."""

    def add(self, target: Target, names: Iterable[tuple[Digest, str]]) -> None:
        """Share digests, each with a tag or index that is served and names it."""

    async def learn(self, target: Target, digest: Digest) -> Sequence[Digest] | None:
        """Record the tags that name a digest; return the indexes that list it.

        None if no replica knows a name.
        """


class OwnCheck:
    """A check by the only replica."""

    known = None

    def __init__(self, records: Tags, target: Target, tag: Tag) -> None:
        self._records = records
        self._target, self._tag = target, tag

    async def settle(self, record: TagRecord) -> TagRecord:
        """Record the registry's answer."""
        await self._records.set(self._target, self._tag, record)
        return record

    async def gone(self) -> None:
        """Do nothing: there are no other replicas."""


class Alone:
    """The ``Sharing`` of a single machine, and of upstreams with ``credentials: caller``."""

    def __init__(self, records: Tags) -> None:
        self._records = records

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return None."""
        return None

    @asynccontextmanager
    async def check(self, target: Target, tag: Tag, max_age: float) -> AsyncIterator[Check]:
        """Open a check."""
        yield OwnCheck(self._records, target, tag)
