"""Reads small content completely through the cache."""

from functools import partial
from typing import assert_never

from proxy.core.errors import ContentMismatch, Overloaded, StorageError
from proxy.core.names import Target
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.repository.results import Blob, LiveBlob, LocalBlob, PassThroughBlob, SmallBlob
from proxy.repository.small_blobs import SmallBlobs
from proxy.runtime.executors import in_thread


async def read_blob(small: SmallBlobs, target: Target, descriptor: Descriptor) -> bytes:
    """Return a verified blob of the size that its descriptor states. Raises ``RegistryError``.

    The caller bounds the size.
    """
    blob = await small.get(target, descriptor.digest, CacheDirective.ANY)
    try:
        body = await _whole(blob, descriptor.size)
    except StorageError as error:
        raise Overloaded(f"{descriptor.digest} cannot be read now: {error}") from error
    finally:
        await blob.aclose()
    if len(body) != descriptor.size:
        raise ContentMismatch(f"{target}: {descriptor.digest} has another size than stated")
    return body


async def _whole(blob: Blob, limit: int) -> bytes:
    """Return up to ``limit`` + 1 bytes once the digest of all of them is proven."""
    match blob:
        case SmallBlob():
            return blob.body
        case LocalBlob():
            return await in_thread(partial(blob.read, 0, min(blob.size, limit + 1)))
        case LiveBlob():
            await blob.reader.download.proven()
            stop = min(blob.reader.download.written, limit + 1)
            return await in_thread(partial(blob.reader.read, 0, stop))
        case PassThroughBlob():
            body = bytearray()
            async for chunk in blob.chunks:
                body += chunk[: limit + 1 - len(body)]
            return bytes(body)
        case _:
            assert_never(blob)
