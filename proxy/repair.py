"""Makes index and store agree again after a crash, in the background of a running proxy."""

import os
from typing import Final

import structlog

from proxy.index import Index
from proxy.names import Digest, Proof
from proxy.records import BlobRecord
from proxy.store import BlobFile, BlobStore
from proxy.threads import in_thread

CHUNK: Final = 4 * 1024 * 1024

log = structlog.get_logger(__name__)


async def reconcile(store: BlobStore, index: Index) -> None:
    """Drop rows whose blob is gone, and adopt blobs without a row once they are proven.

    A blob that is not what its name says is deleted. Raises ``StorageError``.
    """
    await index.ready()
    rows = {record.digest for record in index.coldest()}
    found: set[Digest] = set()
    adopted = 0
    async for batch in store.scan():
        for digest, size, modified in batch:
            found.add(digest)
            if await index.blob(digest) is None:
                adopted += await _adopt(store, index, BlobRecord(digest, size, None, modified))
    ghosts = [digest for digest in sorted(rows - found) if not _is_there(store, digest)]
    await index.drop_blobs(ghosts)
    if adopted or ghosts:
        log.info("reconciled", adopted=adopted, dropped=len(ghosts))


def _is_there(store: BlobStore, digest: Digest) -> bool:
    file = store.open(digest)
    if file is not None:
        file.close()
    return file is not None


async def _adopt(store: BlobStore, index: Index, record: BlobRecord) -> bool:
    """Take one blob into the index, or delete it; tell whether it was taken."""
    file = store.open(record.digest)
    if file is None:
        return False
    try:
        proven = await in_thread(lambda: _is_proven(file, record.digest))
    finally:
        file.close()
    if await index.blob(record.digest) is not None:
        return False
    if proven:
        await index.set_blob(record)
    else:
        log.warning("deleted a blob that is not its digest", digest=record.digest)
        await store.delete([record.digest])
    return proven


def _is_proven(file: BlobFile, digest: Digest) -> bool:
    proof = Proof(digest)
    offset = 0
    while chunk := os.pread(file.fd, CHUNK, offset):
        proof.take(chunk)
        offset += len(chunk)
    return proof.holds
