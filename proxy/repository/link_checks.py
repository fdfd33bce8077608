"""Confirms in the background that a repository has the content that its manifests list.

Anyone who may push to a repository can write a manifest there that lists the digest of private
content of another repository. Held content is therefore served under a name only if it was fetched
under that name, or is public, or upstream has confirmed by HEAD that the repository has it.

Many images share layers, so a manifest may list forty held blobs that need a HEAD. A check sends
all of them at once, in parallel with the pull. A faster client causes the HEAD itself, and both
wait for the same response. A client that already has a layer never requests it: then only the check
completes the image for a later outage.
"""

import asyncio
from collections.abc import Mapping
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.core.errors import NotFound, RegistryError, TooManyRequests
from proxy.core.manifests import INDEX_TYPES, walk
from proxy.core.names import Digest, Target
from proxy.repository.blobs import Blobs
from proxy.repository.manifests import Manifests
from proxy.repository.origins import Origin
from proxy.runtime.singleflight import SingleFlight

CONCURRENCY: Final = 16
"""Maximum number of concurrent requests of all checks together."""

MAX_CHECKS: Final = 64
"""Maximum number of concurrent checks. Others are skipped until the next check of the tag."""

_MAX_DEPTH: Final = 4

log = structlog.get_logger(__name__)


class LinkChecks:
    """Runs checks in the background, until ``close`` cancels them."""

    def __init__(
        self,
        content: Content,
        sources: Mapping[str, Origin],
        *,
        manifests: Manifests,
        blobs: Blobs,
    ) -> None:
        self._content = content
        self._sources = sources
        self._manifests = manifests
        self._blobs = blobs
        self._slots = asyncio.Semaphore(CONCURRENCY)
        self._running: SingleFlight[None] = SingleFlight("check links")

    async def close(self) -> None:
        """Cancel running tasks and wait until they have ended."""
        await self._running.close()

    def begin(self, target: Target, root: Digest) -> None:
        """Confirm the held content that a manifest lists, in the background.

        Does nothing unless the manifest is held and linked to the repository.
        """
        is_offline = self._sources[target.upstream].rule.offline
        if not is_offline and len(self._running) < MAX_CHECKS:
            self._running.start((target, root), lambda: self._check(target, root))

    async def _check(self, target: Target, root: Digest) -> None:
        """Go down from an index to its manifests and from there to blobs."""

        async def confirm(parent: Digest) -> tuple[Digest, ...]:
            if not await self._content.links.is_confirmed(target, parent):
                return ()
            return await self._confirm_children(target, parent)

        try:
            async for _ in walk([root], confirm, max_depth=_MAX_DEPTH):
                pass
        except RegistryError as error:
            log.info(
                "link check ended early", target=str(target), digest=root, reason=error.message
            )

    async def _confirm_children(self, target: Target, parent: Digest) -> tuple[Digest, ...]:
        """Confirm the content that a manifest lists; return the manifests among it."""
        content = self._content
        record, listed = await content.record(parent), await content.graph.listed(parent)
        if record is None or not listed:
            return ()
        await content.links.add_public(target, listed)
        unconfirmed = [
            digest
            for digest in await content.records(listed)
            if not await content.links.is_confirmed(target, digest)
        ]
        lists_manifests = record.media_type in INDEX_TYPES
        try:
            async with asyncio.TaskGroup() as group:
                for digest in unconfirmed:
                    asking = self._ask(target, digest, lists_manifests=lists_manifests)
                    group.create_task(asking, name=f"confirm {digest[:19]}")
        except BaseExceptionGroup as troubles:
            raise troubles.exceptions[0] from None
        return listed if lists_manifests else ()

    async def _ask(self, target: Target, digest: Digest, *, lists_manifests: bool) -> None:
        """Send one HEAD. Raises only errors that make all further ones pointless.

        Content that upstream does not have gets no link, and the check continues.
        """
        async with self._slots:
            if self._sources[target.upstream].is_scarce:
                raise TooManyRequests(f"{target.upstream}: pulls are nearly used up")
            try:
                if lists_manifests:
                    await self._manifests.ask(target, digest)
                else:
                    await self._blobs.confirm(target, digest)
            except NotFound as error:
                log.info("not confirmed", target=str(target), digest=digest, reason=error.message)
