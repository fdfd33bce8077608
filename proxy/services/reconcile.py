"""Keeps index and store in agreement: after every start, and once a day."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.core.errors import StorageError
from proxy.services.oci_index import Layout

FORGET_SECONDS: Final = 90 * 86400.0
"""Rows about content that is not held are forgotten after so long without a confirmation."""

SETTLED_SECONDS: Final = 600.0
DAY_SECONDS: Final = 86400.0

log = structlog.get_logger(__name__)


async def look_after(content: Content, layout: Layout, is_offline: Callable[[str], bool]) -> None:
    """Reconcile now and every day; ``is_offline`` says if an upstream must not be asked.

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
    """Wait so long; return True early if rows were lost."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await content.reconciler.rows_lost()
            return True
    return False


async def presume(content: Content, is_offline: Callable[[str], bool]) -> None:
    """Let images that ``index.json`` has restored be served offline, until the process ends.

    A lost index also knew which repository holds what. The names in ``index.json`` are those of
    manifests that their repositories held, but what these list is only claimed. An upstream that
    can be asked confirms that, by one request for each blob. Offline, the claim has to do. A tag
    that came from ``index.json`` has not been checked since, so its time of check is 0.
    """
    async for batch in content.tags.all():
        for image in batch:
            if image.record.checked_at <= 0.0 and is_offline(image.target.upstream):
                content.links.presume(image.target, await content.graph.tree(image.digest))


async def prune(content: Content) -> None:
    """Forget rows that nothing held needs and no client has asked about for long."""
    try:
        pruned = await content.prune(FORGET_SECONDS)
    except StorageError as error:
        log.warning("the index cannot be pruned", error=str(error))
    else:
        log.info("index pruned", rows=pruned)
