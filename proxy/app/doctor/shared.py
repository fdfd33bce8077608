"""Checks what several machines share: Redis, and the bucket."""

import secrets
import time
from collections.abc import Awaitable
from contextlib import aclosing
from typing import TYPE_CHECKING, Final

from proxy.app import bucket as buckets
from proxy.app.doctor.results import Finding, failed, ok, skipped
from proxy.core.errors import ConfigError, FleetUnavailable, RegistryError
from proxy.core.names import sha256
from proxy.fleet.store import Store
from proxy.runtime.metrics import CacheCounters
from proxy.runtime.part_counters import FleetCounters
from proxy.settings import Bucket, Settings
from proxy.storage.bucket.object_metadata import ObjectMetadata

if TYPE_CHECKING:
    from proxy.storage.bucket.client import BucketClient  # it needs obstore

MAX_SKEW: Final = 30.0
PROBE_BYTES: Final = 64
_LEASE_MS: Final = 10_000

_REASONS: Final = {
    "AuthenticationError": "it refuses the user or the password",
    "NoPermissionError": "its user may not do this",
    "ReadOnlyError": "it is a read-only replica",
    "TimeoutError": "it does not answer in time",
    "ConnectionError": "nothing answers there",
    "MasterNotFoundError": "no sentinel answers and knows such a master",
}
"""Errors of redis-py in words; their messages may quote the address, which is secret."""

_RIGHTS: Final = (
    "s3:GetObject, s3:PutObject, s3:DeleteObject, s3:ListBucket and s3:AbortMultipartUpload"
)


async def redis(settings: Settings) -> Finding:
    """Ping Redis, and acquire and release a lease."""
    if settings.fleet.redis is None:
        return skipped("fleet.redis is not set")
    try:
        store = Store(settings.fleet.redis.get_secret_value(), settings.fleet.name, FleetCounters())
    except ImportError:
        return failed("its library is not installed", "pip install 'millpond[fleet]'")
    key, value = store.key("doctor", secrets.token_hex(8)), secrets.token_hex(8)
    try:
        began = time.monotonic()
        await store.run("PING")
        took = time.monotonic() - began
        seconds, _ = await store.run("TIME")
        taken = await store.run("SET", key, value, "NX", "PX", _LEASE_MS)
        again = await store.run("SET", key, value, "NX", "PX", _LEASE_MS)
        await store.run("DEL", key)
    except FleetUnavailable as error:
        reason = _REASONS.get(str(error), str(error))
        return failed(f"Redis: {reason}", "check fleet.redis: address, user, password and TLS")
    finally:
        await store.close()
    if not taken or again:
        return failed("Redis grants a lease twice", "use a real Redis or Valkey, not a cache of it")
    skew = abs(time.time() - int(seconds))
    if skew > MAX_SKEW:
        return failed(
            f"the clock of Redis differs by {skew:.0f} seconds from this machine's",
            "set both clocks, for example with: timedatectl set-ntp true",
        )
    return ok(f"Redis answers in {took * 1000:.1f} ms and grants leases")


async def bucket(settings: Settings) -> Finding:
    """List, write, read and delete a temporary object under the prefix."""
    configured = settings.storage.bucket
    if configured is None:
        return skipped("storage.bucket is not set")
    try:
        client = _client(configured)
    except ConfigError as error:
        return failed(str(error), "correct storage.bucket")
    problem = await _tried(client, secrets.token_bytes(PROBE_BYTES))
    if problem is None:
        return ok(f"{configured.url}: objects can be listed, written, read and deleted")
    return failed(
        f"{configured.url}: {problem}", f"check endpoint, region, key and rights ({_RIGHTS})"
    )


def _client(configured: Bucket) -> "BucketClient":
    """Return a client of the bucket. Raises ``ConfigError``."""
    stores = buckets.stores(configured, buckets.read_secret(configured))
    from proxy.storage.bucket.client import BucketClient  # noqa: PLC0415 - needs obstore

    return BucketClient(configured.url, stores, CacheCounters())


async def _tried(client: "BucketClient", data: bytes) -> str | None:
    """Return the operation that fails, None if all succeed. Leaves no object."""
    probe = sha256(data)

    async def listed() -> None:
        async with aclosing(client.scan()) as pages:
            await anext(pages, None)

    async def read() -> None:
        if await (await client.open(probe)).whole() != data:
            raise client.fail("it gives other bytes than were written")

    if (problem := await _attempt(client, "listed", listed())) is not None:
        return problem
    if problem := await _attempt(client, "written", client.create(probe, data, ObjectMetadata())):
        return problem
    problem = await _attempt(client, "read", read())
    return await _attempt(client, "deleted", client.delete([probe])) or problem


async def _attempt(client: "BucketClient", verb: str, step: Awaitable[object]) -> str | None:
    """Return why a step fails, None if it succeeds."""
    try:
        await step
    except RegistryError as error:
        reason = client.writing.problem or client.reading.problem or error.message
        return f"objects cannot be {verb}: {reason}"
    return None
