"""The interface to other replicas: who checks a tag, and the result."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Protocol

from proxy.content.facts import Tags
from proxy.core.errors import ManifestUnknown, NotFound
from proxy.core.names import Tag, Target
from proxy.core.policy import MaxAge
from proxy.core.records import TagRecord


class Check(Protocol):
    """One check of a tag at the registry, which another replica may have made just now."""

    @property
    def known(self) -> TagRecord | None:
        """The recent result of another replica: no check is needed."""

    @property
    def is_absent(self) -> bool:
        """The registry has just told another replica that there is no such tag."""

    async def settle(self, record: TagRecord) -> TagRecord:
        """Record the registry's answer; return the newest record, which may be newer."""

    async def gone(self, negative_ttl: float) -> None:
        """Publish that the registry has no such tag, for ``negative_ttl`` seconds if it is new.

        The record stays.
        """


class Sharing(Protocol):
    """The facts about tags that replicas share."""

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return and record an unknown tag, None if no replica knows it."""

    def check(
        self, target: Target, tag: Tag, max_age: MaxAge
    ) -> AbstractAsyncContextManager[Check]:
        """Open a check; a result of another replica is not older than ``max_age``."""


class LocalCheck:
    """A check by the only replica."""

    known = None
    is_absent = False

    def __init__(self, records: Tags, target: Target, tag: Tag) -> None:
        self._records = records
        self._target, self._tag = target, tag

    async def settle(self, record: TagRecord) -> TagRecord:
        """Record the registry's answer."""
        await self._records.set(self._target, self._tag, record)
        return record

    async def gone(self, negative_ttl: float) -> None:
        """Do nothing: there are no other replicas."""


class NoSharing:
    """The ``Sharing`` of a single machine, and of upstreams with ``credentials: caller``."""

    def __init__(self, records: Tags) -> None:
        self._records = records

    async def find(self, target: Target, tag: Tag) -> TagRecord | None:
        """Return None."""
        return None

    @asynccontextmanager
    async def check(self, target: Target, tag: Tag, max_age: MaxAge) -> AsyncIterator[Check]:
        """Open a check."""
        yield LocalCheck(self._records, target, tag)


def refuse_absent(check: Check, target: Target, tag: Tag) -> None:
    """Raise ``ManifestUnknown`` if another replica knows that there is no such tag."""
    if check.is_absent:
        error = ManifestUnknown(f"{target.upstream} has no {target.repo}:{tag}")
        error.is_cached = True
        raise error


async def say_gone(check: Check, error: NotFound, negative_ttl: float) -> None:
    """Tell other replicas that the registry has no such tag, if it has just said so."""
    if not error.is_cached:
        await check.gone(negative_ttl)
