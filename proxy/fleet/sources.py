"""Other replicas as sources of content: the one that is fetching it, and those that have it."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterable
from contextlib import aclosing, suppress
from typing import Any, Final

from proxy.core.errors import BlobUnknown, NotFound, UpstreamFailure, UpstreamUnavailable
from proxy.core.names import Digest, Target
from proxy.core.sources import Body, Piece, Place, Priority, SharedManifest, Source
from proxy.fleet.leases import LEASE_SECONDS, OPEN_SECONDS, LeaseHolder, Leases
from proxy.fleet.peers import STALL_SECONDS, NotYet, PeerBody, Peers
from proxy.fleet.protocol import BLOBS, MANIFESTS, ContentInfo, ContentRequest

GIVE_UP_SECONDS: Final = 3 * LEASE_SECONDS
"""A holder that renews its lease and cannot be reached for so long is cut off from this replica,
which then fetches for itself."""

MAX_ASKED: Final = 8
"""Maximum number of replicas that are asked for content whose holders Redis does not know."""

UPLOAD_SECONDS: Final = 1.5
"""Time after which content that a replica has stored is in the bucket."""

RESCUE_SECONDS: Final = STALL_SECONDS + 4.0
"""The others notice after ``STALL_SECONDS`` that this replica has no more bytes for them."""

_PAUSE: Final = 0.1


class LeaseHolderSource:
    """The replica that is fetching a blob. If there is none, this replica becomes it.

    ``open`` then raises ``BlobUnknown`` and has acquired the lease, so that the next sources are
    asked.
    """

    place: Final = Place.PEER

    def __init__(self, leases: Leases, peers: Peers, bucket: Source | None = None) -> None:
        self._leases = leases
        self._peers = peers
        self._bucket = bucket

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return the bytes of another replica's download, from ``offset`` on as they arrive there.

        Raises ``BlobUnknown``, ``UpstreamUnavailable``. If that replica has stored it and cannot be
        reached, first waits until the bucket has it.
        """
        follower = _LeaseFollower(
            self._leases, self._peers, ContentRequest(BLOBS, target, digest, live=True)
        )
        if priority is Priority.PASS_THROUGH:  # its bytes are not kept, so nobody can follow it
            follower.holder = lambda: self._leases.holder(target.upstream, digest)
        try:
            return _FollowedBody(follower, await follower.next(offset), offset)
        except BlobUnknown:
            if follower.is_cut_off and self._leases.holders(target.upstream, digest):
                await self._uploaded(target, digest)
            raise

    async def _uploaded(self, target: Target, digest: Digest) -> None:
        """Return when the bucket has a blob, fails, or has had time for it."""
        if self._bucket is None:
            return
        end = time.monotonic() + UPLOAD_SECONDS
        while time.monotonic() < end:
            with suppress(NotFound):
                with suppress(UpstreamFailure):
                    await self._bucket.blob_size(target, digest)
                return
            await asyncio.sleep(5 * _PAUSE)

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        """Raise ``BlobUnknown``: a download in progress is not verified yet."""
        raise BlobUnknown(f"{target}@{digest} is not proven yet")

    def reject(self, digest: Digest) -> None:
        """Do nothing: that replica verifies the blob itself."""


class _LeaseFollower:
    """Finds the replica that fetches a blob, and the next one if it dies."""

    def __init__(self, leases: Leases, peers: Peers, wanted: ContentRequest) -> None:
        self._leases = leases
        self._peers = peers
        self._wanted = wanted
        self._value = ""
        self._since = 0.0
        self._offset = -1
        self.is_cut_off = False
        """A holder could not be reached."""
        self.holder: Callable[[], Coroutine[Any, Any, LeaseHolder | None]] = self._acquire

    async def next(self, offset: int) -> PeerBody:
        """Return a body from ``offset`` on. Raises ``BlobUnknown`` if this replica must fetch it.

        A holder that has died keeps its lease for a moment, and one that has just begun has no
        bytes yet: both are asked again. A live holder that cannot be reached, or that repeatedly
        breaks off at the same byte, is skipped: ``UpstreamUnavailable``.
        """
        if offset > self._offset:
            self._offset, self._value = offset, ""
        elif self._value:
            await self._pause(GIVE_UP_SECONDS)
        wanted = self._wanted._replace(offset=offset)
        while True:
            held = await self.holder()
            if held is None:
                self._value = ""
                raise BlobUnknown(f"{wanted.target}@{wanted.digest}: no other replica fetches it")
            if held.value != self._value:
                self._value, self._since = held.value, time.monotonic()
            try:
                body = await self._peers.open(held.address, wanted)
            except NotYet:
                limit = OPEN_SECONDS
            except NotFound:
                limit = GIVE_UP_SECONDS
            except UpstreamFailure:
                self.is_cut_off = True
                limit = GIVE_UP_SECONDS
            else:
                self._leases.follow(wanted.digest)
                return body
            await self._pause(limit)

    async def _pause(self, limit: float) -> None:
        """Wait before the holder is asked again, but for no more than ``limit`` seconds in all."""
        if time.monotonic() - self._since > limit:
            raise UpstreamUnavailable("the replica that fetches it cannot be followed")
        await asyncio.sleep(_PAUSE)

    async def _acquire(self) -> LeaseHolder | None:
        wanted = self._wanted
        taken = await self._leases.acquire(wanted.target.upstream, wanted.digest)
        return taken if isinstance(taken, LeaseHolder) else None


class _FollowedBody:
    """One blob, from one replica after the other."""

    def __init__(self, follower: _LeaseFollower, first: PeerBody, offset: int) -> None:
        self.size = first.size
        self.is_public = first.is_public
        self.is_confirmed = first.is_confirmed
        self._follower = follower
        self._transfer = first
        self._offset = offset

    async def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield the bytes in order.

        Raises ``UpstreamUnavailable`` when no other replica fetches it any more, and this one must
        continue alone.
        """
        while True:
            try:
                async with aclosing(self._transfer.pieces()) as pieces:
                    async for piece in pieces:
                        yield piece
                        self._offset = piece.offset + len(piece.data)
            except UpstreamFailure as error:
                await self._transfer.aclose()
                await self._follow_next(error)
            else:
                return

    async def aclose(self) -> None:
        """End the transfer."""
        await self._transfer.aclose()

    async def _follow_next(self, broken: UpstreamFailure) -> None:
        try:
            self._transfer = await self._follower.next(self._offset)
        except NotFound:
            raise UpstreamUnavailable(broken.message) from broken
        if self._transfer.size not in (None, self.size) and self.size is not None:
            await self._transfer.aclose()
            raise UpstreamUnavailable("the next replica has another size")


class ReplicaSource:
    """The replicas that have content. ``others`` returns the addresses of those that are alive."""

    place: Final = Place.PEER

    def __init__(self, leases: Leases, peers: Peers, others: Callable[[], Iterable[str]]) -> None:
        self._leases = leases
        self._peers = peers
        self._others = others

    @property
    def has_others(self) -> bool:
        """There are other replicas."""
        return any(True for _ in self._others())

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return a blob from ``offset`` on. Raises ``BlobUnknown``, ``UpstreamUnavailable``."""
        wanted = ContentRequest(BLOBS, target, digest, offset)
        for address in self._leases.holders(target.upstream, digest):
            try:
                return await self._peers.open(address, wanted)
            except NotFound:
                await self._leases.forget_holder(digest, address)
            except UpstreamFailure:
                continue
        address, _ = await self._first(wanted)
        return await self._peers.open(address, wanted)

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        """Return the size of a blob that a replica has confirmed for the repository.

        Raises ``BlobUnknown``.
        """
        _, info = await self._first(ContentRequest(BLOBS, target, digest), must_confirm=True)
        return info.size

    async def manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        """Return a manifest that a replica has confirmed for the repository."""
        wanted = ContentRequest(MANIFESTS, target, digest)
        known = self._leases.holders(target.upstream, digest)
        try:
            address = known[0] if known else (await self._first(wanted, must_confirm=True))[0]
            return await self._peers.manifest(address, wanted)
        except (NotFound, UpstreamFailure):
            return None

    def reject(self, digest: Digest) -> None:
        """Do nothing: the replica finds out when it hashes its content."""

    async def _first(
        self, wanted: ContentRequest, *, must_confirm: bool = False
    ) -> tuple[str, ContentInfo]:
        """Return the first replica that has it. Raises ``BlobUnknown``."""
        addresses = [one for one in self._others() if not self._peers.is_skipped(one)]
        asked = [
            asyncio.create_task(self._asked(address, wanted), name="ask a replica")
            for address in addresses[:MAX_ASKED]
        ]
        try:
            for answer in asyncio.as_completed(asked):
                address, info = await answer
                if info is not None and (info.is_confirmed or not must_confirm):
                    return address, info
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        raise BlobUnknown(f"{wanted.target}@{wanted.digest}: no other replica holds it")

    async def _asked(self, address: str, wanted: ContentRequest) -> tuple[str, ContentInfo | None]:
        try:
            return address, await self._peers.head(address, wanted)
        except (NotFound, UpstreamFailure):
            return address, None


class RescueSource:
    """A replica that continues a blob after this one's registry has broken off.

    The others follow this replica until they notice that it stalls. Then one of them fetches the
    rest, and soon has the whole blob.
    """

    place: Final = Place.PEER

    def __init__(self, leases: Leases, peers: Peers, replicas: ReplicaSource) -> None:
        self._leases = leases
        self._peers = peers
        self._replicas = replicas

    async def open(self, target: Target, digest: Digest, offset: int, priority: Priority) -> Body:
        """Return the bytes of another replica from ``offset`` on.

        Raises ``BlobUnknown`` if there is none, or nothing has arrived here yet.
        """
        if offset == 0 or not self._replicas.has_others:
            raise BlobUnknown(f"{target}@{digest}: no other replica fetches it")
        self._leases.release(target.upstream, digest)
        follower = _LeaseFollower(
            self._leases, self._peers, ContentRequest(BLOBS, target, digest, live=True)
        )
        follower.holder = lambda: self._leases.holder(target.upstream, digest)
        end = time.monotonic() + RESCUE_SECONDS
        while True:
            with suppress(NotFound):
                return _FollowedBody(follower, await follower.next(offset), offset)
            try:
                return await self._replicas.open(target, digest, offset, priority)
            except (NotFound, UpstreamFailure):
                if time.monotonic() > end:
                    raise
            await asyncio.sleep(_PAUSE)

    async def blob_size(self, target: Target, digest: Digest) -> int | None:
        """Raise ``BlobUnknown``: a download in progress is not verified yet."""
        raise BlobUnknown(f"{target}@{digest} is not proven yet")

    def reject(self, digest: Digest) -> None:
        """Do nothing: that replica verifies the blob itself."""
