"""Makes index and store agree again after a crash, in the background of a running proxy."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.core import manifests
from proxy.core.errors import StorageError
from proxy.core.names import Digest
from proxy.core.records import disk_bytes
from proxy.runtime.executors import by_size

FORGET_SECONDS: Final = 90 * 86400.0
"""After so long without a confirmation what is known of images is forgotten that are not held."""

_SLICE: Final = 250
"""Files that are looked for before the loop turns."""

log = structlog.get_logger(__name__)


async def reconcile(content: Content) -> None:
    """Drop rows whose blob is gone, and adopt blobs without a row once they are proven.

    A blob that is not what its name says is set aside. Raises ``StorageError``.
    """
    started = time.perf_counter()
    index, evictor = content.index, content.evictor
    await index.ready()
    found = {digest: disk_bytes(size) async for digest, size in _orphans(content)}
    orphans = {digest: size for digest, size in found.items() if index.held(digest) is None}
    content.orphans = orphans
    evictor.found(sum(orphans.values()))
    adopted, dropped = 0, await _drop_ghosts(content)
    if orphans:
        async for digest, _ in _orphans(content):
            adopted += await content.adopt_orphan(digest) is not None
        # A file that could not be opened goes on counting: it takes its room all the same.
        evictor.found(sum(size for digest, size in orphans.items() if index.held(digest) is None))
    for digest in index.incomplete():
        await _complete(content, digest)
    content.is_settled = True
    took = round(time.perf_counter() - started, 3)
    log.info("reconciled", adopted=adopted, dropped=dropped, seconds=took)


async def presume(content: Content) -> None:
    """Let what ``index.json`` has restored be served offline, where nothing can be confirmed.

    A lost index also knew which repository holds what. The names in ``index.json`` are those of
    manifests that their repositories held, but what these list is only claimed. Where upstream can
    be asked it confirms that, one question for each blob. Offline, the claim has to do, for this
    process only. A tag that came from ``index.json`` has not been checked since.
    """
    index = content.index
    for count, (target, _, record) in enumerate(index.tagged()):
        if count % _SLICE == 0:
            await asyncio.sleep(0)
        if record.checked_at > 0.0:
            continue
        tree = dict.fromkeys([record.descriptor.digest])
        todo = list(tree)
        while todo:
            below = [child.digest for child in index.children(todo.pop())]
            todo += [digest for digest in below if digest not in tree]
            tree |= dict.fromkeys(below)
        content.presumed.update((target, digest) for digest in tree)


async def prune(content: Content) -> None:
    """Forget rows that nothing held needs and nobody has asked about for long."""
    try:
        pruned = await content.index.prune(content.clock() - FORGET_SECONDS)
    except StorageError as error:
        log.warning("the index cannot be pruned", error=str(error))
    else:
        log.info("index pruned", rows=pruned)


async def _orphans(content: Content) -> AsyncIterator[tuple[Digest, int]]:
    async for batch in content.store.scan():
        for digest, size, _ in batch:
            if not content.index.seen(digest):
                yield digest, size


async def _drop_ghosts(content: Content) -> int:
    """Drop the rows of what the scan has not met and is not there; return how many went."""
    unseen = content.index.unseen()
    dropped = 0
    for start in range(0, len(unseen), _SLICE):
        some = unseen[start : start + _SLICE]
        ghosts = [digest for digest in some if not _is_there(content, digest)]
        await content.index.drop_blobs(ghosts)
        dropped += len(ghosts)
    return dropped


def _is_there(content: Content, digest: Digest) -> bool:
    """Tell whether a blob has a file; what cannot be looked at is not known to be gone."""
    try:
        file = content.store.open(digest)
    except StorageError as error:
        content.trouble(error)
        return True
    if file is not None:
        file.close()
    return file is not None


async def _complete(content: Content, digest: Digest) -> None:
    """Find out what a manifest lists that an older layout has left."""
    record, body = content.index.held(digest), await content.read(digest)
    if record is None or body is None:
        return
    manifest = await by_size(len(body), lambda: manifests.read(body))
    if manifest.listed is not None:
        await content.index.set_blob(record, manifest.listed)
