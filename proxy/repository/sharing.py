"""The interface to other replicas: who checks a tag, and the result."""

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


class LocalCheck:
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


class NoSharing:
    """The ``Sharing`` of a single machine, and of upstreams with ``credentials: caller``."""

    def __init__(self, records: Tags) -> None:
        self._records = records

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return None."""
        return None

    @asynccontextmanager
    async def check(self, target: Target, tag: Tag, max_age: float) -> AsyncIterator[Check]:
        """Open a check."""
        yield LocalCheck(self._records, target, tag)
