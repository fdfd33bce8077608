"""Connects the bucket, if one is configured, to the cache of this machine."""

from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import structlog

from proxy.core.errors import ConfigError, StorageError
from proxy.core.names import Digest
from proxy.core.sources import Place
from proxy.settings import Bucket

if TYPE_CHECKING:
    from proxy.app.storage import Storage
    from proxy.content.bucket_eviction import BucketEvictor
    from proxy.content.bucket_uploads import Uploads
    from proxy.storage.bucket.client import BucketClient
    from proxy.storage.bucket.recency import LocalRecency, Recency
    from proxy.storage.bucket.source import BucketSource
    from proxy.storage.bucket.stores import Stores

_USES: Final = "bucket uses"
MAX_SECRET: Final = 64 * 1024

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class SecondTier:
    """The parts that read, fill and evict from the bucket."""

    client: "BucketClient"
    source: "BucketSource"
    uploads: "Uploads"
    evictor: "BucketEvictor"
    recency: "Recency"

    async def sign(self, digest: Digest, seconds: float) -> str | None:
        """Return a URL that is valid for so long, None unless the object is known to be there."""
        if not self.client.has(digest):
            return None
        self.recency.touch(digest)
        return await self.client.url(digest, seconds)


async def open_bucket(
    stack: AsyncExitStack,
    configured: Bucket,
    storage: "Storage",
    shared: "Recency | None",
    smallest: int,
) -> SecondTier:
    """Return the second tier; ``stack`` closes it. Needs no network. Raises ``ConfigError``.

    ``shared`` has the last uses by all machines. Content of less than ``smallest`` bytes is not
    stored. Closing waits for uploads, so close it after everything that stores content.
    """
    from proxy.content.bucket_eviction import BucketEvictor  # noqa: PLC0415 - needs obstore
    from proxy.content.bucket_uploads import Uploads  # noqa: PLC0415 - needs obstore
    from proxy.storage.bucket.client import BucketClient  # noqa: PLC0415 - needs obstore
    from proxy.storage.bucket.orphans import sweep  # noqa: PLC0415
    from proxy.storage.bucket.recency import LocalRecency  # noqa: PLC0415
    from proxy.storage.bucket.source import BucketSource  # noqa: PLC0415 - needs obstore

    secret = read_secret(configured)
    local_storage = storage.local_storage
    client = BucketClient(configured.url, stores(configured, secret), local_storage.counters)
    recency = shared
    if recency is None:
        recency = own = LocalRecency(local_storage.clock)
        await _load(own, storage)
        stack.push_async_callback(_save, own, storage)
    uploads = Uploads(
        client, local_storage, smallest=smallest, sweep=partial(sweep, configured, secret)
    )
    stack.push_async_callback(uploads.close)
    storage.content.on_stored.append(uploads.add)
    source = BucketSource(client, recency, uploads.replace)
    stack.push_async_callback(source.close)
    source.on_wrong.append(storage.content.faults.mismatch_reporter(Place.BUCKET))
    evictor = BucketEvictor(
        client, local_storage, recency, limit=configured.max_size, protected=storage.pins.protected
    )
    return SecondTier(client, source, uploads, evictor, recency)


def stores(configured: Bucket, secret: str | None) -> "Stores":
    """Return the stores of a bucket. Raises ``ConfigError``, also without obstore."""
    try:
        from proxy.storage.bucket import stores as opening  # noqa: PLC0415 - needs obstore
    except ImportError as error:
        raise ConfigError(
            f"storage.bucket: {error.name} is not installed; pip install 'millpond[bucket]'"
        ) from None
    return opening.open_stores(configured, secret)


def read_secret(configured: Bucket) -> str | None:
    """Return the content of the file with the secret. Raises ``ConfigError``."""
    file = configured.secret_access_key_file
    if file is None:
        return None
    try:
        with Path(file).open("rb") as opened_file:
            secret = opened_file.read(MAX_SECRET).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        problem = f"storage.bucket.secret_access_key_file: {file} cannot be read: {reason}"
        raise ConfigError(problem) from None
    if not secret:
        raise ConfigError(f"storage.bucket.secret_access_key_file: {file} is empty")
    return secret


async def _load(recency: "LocalRecency", storage: "Storage") -> None:
    try:
        recency.load(await storage.content.note(_USES))
    except StorageError as error:
        log.warning("uses of the bucket are not known", error=str(error))


async def _save(recency: "LocalRecency", storage: "Storage") -> None:
    try:
        await storage.content.set_note(_USES, recency.saved())
    except StorageError as error:
        log.warning("uses of the bucket cannot be stored", error=str(error))
