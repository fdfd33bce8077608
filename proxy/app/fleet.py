"""Builds the parts that this replica shares with the others of its fleet."""

import ipaddress
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import structlog

from proxy import VERSION
from proxy.app.bucket import SecondTier
from proxy.content.content import Content
from proxy.content.downloads import Download, Downloads
from proxy.core.errors import ConfigError
from proxy.core.names import Digest
from proxy.core.sentinels import SCHEMES, Sentinels
from proxy.core.sources import Place
from proxy.fleet.delegation import DelegatedSource
from proxy.fleet.leases import Leases, Progress
from proxy.fleet.manifests import Manifests
from proxy.fleet.peers import Peers as PeerClient
from proxy.fleet.replicas import Replicas
from proxy.fleet.signatures import MIN_SECRET, Signer
from proxy.fleet.small_blobs import SmallBlobs
from proxy.fleet.small_content import LARGEST, SmallContent
from proxy.fleet.sources import LeaseHolderSource, ReplicaSource, RescueSource
from proxy.fleet.store import Store
from proxy.fleet.tokens import TokenVault
from proxy.repository.origins import Peers
from proxy.runtime.metrics import Metrics
from proxy.runtime.supervisor import Supervisor
from proxy.settings import Bucket, Settings

_MAX_DOWNLOADS: Final = 20
"""Maximum number of downloads in the state of a replica."""

_SMALL: Final = 4096
"""Bytes from which blobs do not go to Redis without a bucket."""

log = structlog.get_logger(__name__)


class LocalParts(NamedTuple):
    """The parts of this replica."""

    content: Content
    downloads: Downloads
    bucket: SecondTier | None
    listens_at: str | None
    """HOST:PORT, None without clients."""


class ContentExchange(NamedTuple):
    """The parts that exchange content and tokens."""

    signer: Signer
    leases: Leases
    peers: Peers
    tokens: TokenVault
    small: SmallContent
    small_blobs: SmallBlobs


@dataclass(frozen=True, slots=True)
class Fleet:
    """The shared parts. ``exchange`` None: replicas exchange no content."""

    store: Store
    address: str
    replicas: Replicas
    exchange: ContentExchange | None


class _Replica(NamedTuple):
    """A replica, and what closes its parts and runs its tasks."""

    stack: AsyncExitStack
    background: Supervisor
    store: Store
    replicas: Replicas
    local: LocalParts


def open_store(stack: AsyncExitStack, settings: Settings, metrics: Metrics) -> Store | None:
    """Return the client of the fleet's Redis, None without ``fleet.redis``; ``stack`` closes it."""
    if settings.fleet.redis is None:
        return None
    url = settings.fleet.redis.get_secret_value()
    store = Store(url, settings.fleet.name, metrics.fleet)
    stack.push_async_callback(store.close)
    return store


def smallest_object(settings: Settings, bucket: Bucket) -> int:
    """Return the size in bytes from which content needs the bucket.

    Replicas give each other smaller content, but only with a secret.
    """
    return 0 if settings.fleet.secret_file is None else bucket.min_object


async def open_fleet(
    stack: AsyncExitStack,
    settings: Settings,
    store: Store | None,
    metrics: Metrics,
    local: LocalParts,
) -> Fleet | None:
    """Return the parts of a replica; ``stack`` closes them. Raises ``ConfigError``.

    None without a store, or without clients.
    """
    content, downloads, _, listens_at = local
    if settings.fleet.redis is None or store is None or listens_at is None:
        return None
    url = settings.fleet.redis.get_secret_value()
    background = Supervisor(metrics.tasks, metrics.readiness)
    stack.push_async_callback(background.close)
    address = settings.fleet.advertise or _address(
        url, listens_at, has_tls=settings.tls is not None
    )
    replicas = Replicas(store, address, _describe(content, downloads, metrics))
    stack.push_async_callback(replicas.leave)
    exchange = None
    if settings.fleet.secret_file is None:
        log.warning("replicas exchange no content without fleet.secret_file", address=address)
    else:
        secret = _secret(settings.fleet.secret_file)
        replica = _Replica(stack, background, store, replicas, local)
        exchange = _exchange(replica, secret, _largest(settings), metrics)
        log.info("this replica exchanges content with others", address=address)
    background.start("fleet heartbeat", replicas.beat)
    return Fleet(store, address, replicas, exchange)


def _exchange(replica: _Replica, secret: bytes, largest: int, metrics: Metrics) -> ContentExchange:
    """Return what exchanges content; blobs of up to ``largest`` bytes go through Redis."""
    stack, background, store, replicas, local = replica
    bucket = None if local.bucket is None else local.bucket.source
    signer = Signer(secret, replicas.address, store.now)
    client = PeerClient(signer, metrics.fleet)
    stack.push_async_callback(client.close)
    client.on_wrong.append(local.content.faults.mismatch_reporter(Place.PEER))
    leases = Leases(store, replicas.address)
    stack.push_async_callback(leases.close)
    _report(local, leases)
    background.start("fleet leases", lambda: leases.renew_forever(_progress(local.downloads)))
    replica_source = ReplicaSource(leases, client, replicas.others)
    small = SmallContent(store)
    background.start("fleet manifests", small.run)
    small_blobs = SmallBlobs(store, largest, local.content.read_untouched)
    background.start("fleet blobs", small_blobs.run)
    others = (replica_source,) if bucket is None else (bucket, replica_source)
    manifests = Manifests(leases, client, (small, *others))
    stack.push_async_callback(manifests.close)
    lease_holder, rescue = (
        LeaseHolderSource(leases, client, bucket),
        RescueSource(leases, client, replica_source),
    )
    delegate = DelegatedSource(client, replicas.others)
    peers = Peers(
        small_blobs, lease_holder, replica_source, manifests, delegate, rescue, leases.release
    )
    return ContentExchange(signer, leases, peers, TokenVault(store, secret), small, small_blobs)


def _report(local: LocalParts, leases: Leases) -> None:
    """Have leases follow what is downloaded and stored here."""
    local.content.on_stored.append(leases.stored)
    if local.bucket is not None:
        local.bucket.uploads.is_left_to_others = leases.was_followed
    local.downloads.on_ended.append(_release(leases))


def _largest(settings: Settings) -> int:
    """Return the size in bytes of the largest blobs in Redis: those that no bucket keeps."""
    bucket = settings.storage.bucket
    return min(LARGEST, _SMALL if bucket is None else bucket.min_object) - 1


def _secret(file: Path) -> bytes:
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise ConfigError(f"fleet.secret_file: {file} cannot be read: {error.strerror}") from None
    if len(secret) < MIN_SECRET:
        raise ConfigError(
            f"fleet.secret_file: {file} has less than {MIN_SECRET} bytes; "
            "make one with: openssl rand -hex 32"
        )
    return secret


def _address(redis: str, listens_at: str, *, has_tls: bool) -> str:
    """Return the address at which the others reach this replica.

    There are two cases: it listens on one address, or on all. Then the address on the route to
    Redis is assumed to be reachable for the other replicas too.
    """
    host, _, port = listens_at.rpartition(":")
    host = host.strip("[]")
    if ipaddress.ip_address(host).is_unspecified:
        host = _route_to(redis) or "127.0.0.1"
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if has_tls else 'http'}://{shown}:{port}"


def _route_to(redis: str) -> str | None:
    """Return this machine's address on the route to Redis, None for a unix socket."""
    if redis.startswith(SCHEMES):
        host, port = Sentinels.parse(redis).hosts[0]
    else:
        url = urlsplit(redis)
        if url.hostname is None:
            return None
        host, port = url.hostname, url.port or 6379
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)
        family, kind, protocol, _, address = found[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(address)  # sends nothing
            return str(probe.getsockname()[0])
    except OSError as error:
        raise ConfigError(
            f"fleet.advertise: the address of this replica is not known, because the host of "
            f"fleet.redis is not: {error.strerror}; set fleet.advertise"
        ) from None


def _progress(downloads: Downloads) -> Callable[[str, Digest], Progress | None]:
    def progress(upstream: str, digest: Digest) -> Progress | None:
        download = downloads.of(upstream, digest)
        if download is None or not download.is_open:
            return None
        return Progress(download.written, is_complete=download.written == download.size)

    return progress


def _release(leases: Leases) -> Callable[[Download], None]:
    def release(download: Download) -> None:
        leases.release(download.target.upstream, download.digest)

    return release


def _describe(
    content: Content, downloads: Downloads, metrics: Metrics
) -> Callable[[], dict[str, Any]]:
    """Return a function that describes the state of this replica, as JSON; bytes and seconds."""
    started = time.monotonic()

    def describe() -> dict[str, Any]:
        usage, running = content.usage(), downloads.all()
        reasons = content.failures() | dict(metrics.readiness.reasons)
        return {
            "version": VERSION,
            "uptime_seconds": round(time.monotonic() - started),
            "health": "; ".join(reasons.values()) or "ok",
            "disk_bytes": usage.used_bytes,
            "disk_limit_bytes": usage.limit_bytes,
            "downloads": len(running),
            "downloading": [_shown(download) for download in running[:_MAX_DOWNLOADS]],
        }

    return describe


def _shown(download: Download) -> dict[str, Any]:
    return {
        "digest": download.digest,
        "upstream": download.target.upstream,
        "repository": download.target.repo,
        "bytes": download.written,
        "size": download.size,
    }
