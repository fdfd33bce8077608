"""The seam to other replicas that ask the same registries: who checks a tag, and what was found."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from proxy.content.facts import Tags
from proxy.core.names import Tag, Target
from proxy.core.records import TagRecord


class Check(Protocol):
    """One check of a tag at the registry. ``known``: no check is needed, this is the result."""

    @property
    def known(self) -> TagRecord | None:
        """What another replica has just found."""

    async def settle(self, record: TagRecord) -> TagRecord:
        """Record what the registry says; return the newest record, which may be newer."""

    async def gone(self) -> None:
        """Say that the registry has deleted the tag. The record stays."""


class Sharing(Protocol):
    """What replicas tell each other about tags."""

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return and record where a tag points that is not known here; None if nobody knows."""

    def check(self, target: Target, tag: Tag, max_age: float) -> AbstractAsyncContextManager[Check]:
        """Give a check; one that is ``known`` was made in the last ``max_age`` seconds."""


class OwnCheck:
    """A check by the only replica."""

    known = None

    def __init__(self, records: Tags, target: Target, tag: Tag) -> None:
        self._records = records
        self._target, self._tag = target, tag

    async def settle(self, record: TagRecord) -> TagRecord:
        """Record what the registry says."""
        await self._records.set(self._target, self._tag, record)
        return record

    async def gone(self) -> None:
        """Tell nobody."""


class Alone:
    """The ``Sharing`` of a single machine, and of upstreams that are asked as their clients."""

    def __init__(self, records: Tags) -> None:
        self._records = records

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return None."""
        return None

    @asynccontextmanager
    async def check(self, target: Target, tag: Tag, max_age: float) -> AsyncIterator[Check]:
        """Give a check."""
        yield OwnCheck(self._records, target, tag)
