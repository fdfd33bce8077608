"""Keeps index and store consistent: after every start, and once a day."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.core.errors import StorageError
from proxy.services.oci_index import Layout

FORGET_SECONDS: Final = 90 * 86400.0
"""Rows about content that is not held are deleted after this time without a confirmation."""

SETTLED_SECONDS: Final = 600.0
DAY_SECONDS: Final = 86400.0

log = structlog.get_logger(__name__)


async def look_after(content: Content, layout: Layout, is_offline: Callable[[str], bool]) -> None:
    """Reconcile now and every day; ``is_offline`` returns True for an upstream that is offline.

    Raises ``StorageError``, and may then be called again.
    """
    await layout.load()
    await content.reconciler.reconcile()
    await presume(content, is_offline)
    if not await _lost_within(SETTLED_SECONDS, content):
        await prune(content)
    while True:
        if not await _lost_within(DAY_SECONDS, content):
            await prune(content)
        await content.reconciler.reconcile()


async def _lost_within(seconds: float, content: Content) -> bool:
    """Wait for some seconds; return True early if rows were lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await content.reconciler.rows_lost()
            return True
    return False


async def presume(content: Content, is_offline: Callable[[str], bool]) -> None:
    """Allow images that were restored from ``index.json`` to be served offline until a restart.

    A lost index also had the links of repositories. The names in ``index.json`` prove which
    manifests a repository had, but the content of these is only claimed. An upstream that is
    reachable confirms it, with one request for each blob. Offline, the claim must suffice. A tag
    from ``index.json`` has not been checked since, so its time of check is 0.
    """
    async for batch in content.tags.all():
        for image in batch:
            if image.record.checked_at <= 0.0 and is_offline(image.target.upstream):
                content.links.presume(image.target, await content.graph.tree(image.digest))


async def prune(content: Content) -> None:
    """Delete rows that no held content needs and no client has used for long."""
    try:
        pruned = await content.prune(FORGET_SECONDS)
    except StorageError as error:
        log.warning("the index cannot be pruned", error=str(error))
    else:
        log.info("index pruned", rows=pruned)
