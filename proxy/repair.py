"""Makes index and store agree again after a crash, in the background of a running proxy."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Final

import structlog

from proxy import manifests
from proxy.cache.holdings import Holdings
from proxy.errors import StorageError, is_disk_error
from proxy.names import Digest, Proof
from proxy.records import BlobRecord, Child, disk_bytes
from proxy.store import BlobFile
from proxy.threads import in_thread

CHUNK: Final = 4 * 1024 * 1024
FORGET_SECONDS: Final = 90 * 86400.0
"""After so long without a confirmation what is known of images is forgotten that are not held."""

_SLICE: Final = 250
"""Files that are looked for before the loop turns."""

log = structlog.get_logger(__name__)


async def reconcile(holdings: Holdings) -> None:
    """Drop rows whose blob is gone, and adopt blobs without a row once they are proven.

    A blob that is not what its name says is set aside. Raises ``StorageError``.
    """
    started = time.perf_counter()
    index, evictor = holdings.index, holdings.evictor
    await index.ready()
    unknown = {digest: disk_bytes(size) async for digest, size, _ in _orphans(holdings)}
    evictor.found(sum(unknown.values()))
    adopted, dropped = 0, await _drop_ghosts(holdings)
    if unknown:
        async for digest, size, modified in _orphans(holdings):
            adopted += await _adopt(holdings, BlobRecord(digest, size, None, modified))
            evictor.settled(unknown.pop(digest, 0))  # 0: a download that has just been stored
        evictor.found(0)
    for digest in index.incomplete():
        await _complete(holdings, digest)
    took = round(time.perf_counter() - started, 3)
    log.info("reconciled", adopted=adopted, dropped=dropped, seconds=took)


async def presume(holdings: Holdings) -> None:
    """Let what ``index.json`` has restored be served offline, where nothing can be confirmed.

    A lost index also knew which repository holds what. The names in ``index.json`` are those of
    manifests that their repositories held, but what these list is only claimed. Where upstream can
    be asked it confirms that, one question for each blob. Offline, the claim has to do, for this
    process only. A tag that came from ``index.json`` has not been checked since.
    """
    index = holdings.index
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
        holdings.presumed.update((target, digest) for digest in tree)


async def prune(holdings: Holdings) -> None:
    """Forget rows that nothing held needs and nobody has asked about for long."""
    pruned = await holdings.index.prune(holdings.clock() - FORGET_SECONDS)
    log.info("index pruned", rows=pruned)


def proof(file: BlobFile, digest: Digest) -> Proof:
    """Return what hashing a whole file proves; blocks. Raises ``OSError``."""
    found = Proof(digest)
    offset = 0
    while chunk := os.pread(file.fd, CHUNK, offset):
        found.take(chunk)
        offset += len(chunk)
    return found


async def _orphans(holdings: Holdings) -> AsyncIterator[tuple[Digest, int, float]]:
    async for batch in holdings.store.scan():
        for digest, size, modified in batch:
            if not holdings.index.seen(digest):
                yield digest, size, modified


async def _drop_ghosts(holdings: Holdings) -> int:
    """Drop the rows of what the scan has not met and is not there; return how many went."""
    unseen = holdings.index.unseen()
    dropped = 0
    for start in range(0, len(unseen), _SLICE):
        some = unseen[start : start + _SLICE]
        ghosts = [digest for digest in some if not _is_there(holdings, digest)]
        await holdings.index.drop_blobs(ghosts)
        dropped += len(ghosts)
    return dropped


def _is_there(holdings: Holdings, digest: Digest) -> bool:
    """Tell whether a blob has a file; what cannot be looked at is not known to be gone."""
    try:
        file = holdings.store.open(digest)
    except StorageError as error:
        holdings.trouble(error)
        return True
    if file is not None:
        file.close()
    return file is not None


async def _adopt(holdings: Holdings, record: BlobRecord) -> bool:
    """Take one blob into the index, or set it aside; tell whether it was taken."""
    problem, body = "its bytes are not its name", b""
    try:
        file = holdings.store.open(record.digest)
    except StorageError as error:
        holdings.trouble(error)
        return False
    if file is None:
        return False
    try:
        proven = (await in_thread(lambda: proof(file, record.digest))).holds
        body = file.read() if proven and record.size <= manifests.MAX_SIZE else b""
    except (OSError, StorageError) as error:
        if not is_disk_error(error):
            log.warning("content could not be adopted", digest=record.digest, error=str(error))
            return False
        proven, problem = False, f"it cannot be read: {error}"
    finally:
        file.close()
    if await holdings.index.blob(record.digest) is not None:
        return False
    if not proven:
        await holdings.set_aside(record.digest, {"reason": problem})
        return False
    media_type, children = _understood(body)
    known = BlobRecord(record.digest, record.size, media_type, record.used_at)
    await holdings.index.set_blob(known, children)
    return True


async def _complete(holdings: Holdings, digest: Digest) -> None:
    """Find out what a manifest lists that an older layout has left."""
    record, body = holdings.index.held(digest), await holdings.read(digest)
    if record is not None and body is not None:
        await holdings.index.set_blob(record, manifests.listed(body))


def _understood(body: bytes) -> tuple[str | None, tuple[Child, ...]]:
    """Return a manifest's media type and children; (None, ()) for any other content."""
    if body.lstrip()[:1] != b"{" or not manifests.is_manifest(body):
        return None, ()
    return manifests.own_type(body) or manifests.implied_type(body), manifests.listed(body)
