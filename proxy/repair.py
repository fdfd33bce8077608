"""Makes index and store agree again after a crash, in the background of a running proxy."""

import os
import time
from collections.abc import AsyncIterator
from typing import Final

import structlog

from proxy import manifests
from proxy.cache.holdings import Holdings
from proxy.errors import StorageError
from proxy.names import Digest, Proof
from proxy.records import BlobRecord, Child, disk_bytes
from proxy.store import BlobFile
from proxy.threads import Pool, by_size, in_thread

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
    sizes = [disk_bytes(size) async for _, size, _ in _orphans(holdings)]
    evictor.found(sum(sizes))
    adopted, dropped = 0, await _drop_ghosts(holdings)
    if sizes:
        async for digest, size, modified in _orphans(holdings):
            adopted += await _adopt(holdings, BlobRecord(digest, size, None, modified))
            evictor.settled(disk_bytes(size))
        evictor.found(0)
    for digest in index.incomplete():
        await _complete(holdings, digest)
    if adopted:
        await _relink(holdings)
    took = round(time.perf_counter() - started, 3)
    log.info("reconciled", adopted=adopted, dropped=dropped, seconds=took)


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
        proven = (await in_thread(lambda: proof(file, record.digest), Pool.UPKEEP)).holds
        body = file.read() if proven and record.size <= manifests.MAX_SIZE else b""
    except (OSError, StorageError) as error:
        proven, problem = False, f"it cannot be read: {error}"
    finally:
        file.close()
    if await holdings.index.blob(record.digest) is not None:
        return False
    if not proven:
        await holdings.set_aside(record.digest, {"reason": problem})
        return False
    media_type, children = await by_size(len(body), lambda: _understood(body))
    known = BlobRecord(record.digest, record.size, media_type, record.used_at)
    await holdings.index.set_blob(known, children)
    return True


async def _relink(holdings: Holdings) -> None:
    """Learn from the tags who holds what has been adopted: an index that was lost told it too."""
    index = holdings.index
    for target, _, record in index.tagged():
        tree = [record.descriptor.digest]
        for digest in tree:
            tree += [child.digest for child in index.children(digest) if child.digest not in tree]
        await index.link(target, tree)


async def _complete(holdings: Holdings, digest: Digest) -> None:
    """Find out what a manifest lists that an older layout has left."""
    record, body = holdings.index.held(digest), await holdings.read(digest)
    if record is None or body is None:
        return
    content = await by_size(len(body), lambda: manifests.read(body))
    if content.listed is not None:
        await holdings.index.set_blob(record, content.listed)


def _understood(body: bytes) -> tuple[str | None, tuple[Child, ...] | None]:
    """Return a manifest's media type and children; (None, ()) for any other content."""
    if body[:1] not in b"{ \t\r\n":
        return None, ()
    content = manifests.read(body)
    if not content.is_manifest or (content.own_type is None and content.children is None):
        return None, ()
    return content.own_type or content.implied_type, content.listed
