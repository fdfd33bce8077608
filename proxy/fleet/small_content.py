"""Small manifests in Redis, so that replicas find them after those that had them are gone.

A key contains the repository, so the entry proves that the repository has the manifest. The bytes
are verified by digest.
"""

import asyncio
import json
from typing import Final

from proxy.core.errors import FleetUnavailable
from proxy.core.manifests import is_media_type
from proxy.core.names import Digest, Target, matches
from proxy.core.records import Descriptor
from proxy.core.sources import Place, SharedManifest
from proxy.core.tolerant_json import read_object
from proxy.fleet.store import Store

LARGEST: Final = 64 * 1024
"""Bytes; larger manifests come from replicas or the bucket."""

LIFE_SECONDS: Final = 3600
MAX_WAITING: Final = 200
"""Maximum number of manifests that wait to be sent; others are not sent."""


class SmallContent:
    """Manifests of up to ``LARGEST`` bytes. Run ``run`` as a task."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: asyncio.Queue[tuple[str, bytes]] = asyncio.Queue(MAX_WAITING)

    def add(self, target: Target, descriptor: Descriptor, body: bytes, is_public: bool) -> None:  # noqa: FBT001 - a callback
        """Send a verified manifest that the registry has confirmed for a repository."""
        if len(body) > LARGEST or self._waiting.full():
            return
        facts = {"type": descriptor.media_type, "public": is_public}
        value = json.dumps(facts).encode() + b"\n" + body
        self._waiting.put_nowait((self._key(target, descriptor.digest), value))

    async def run(self) -> None:
        """Send manifests, until cancelled. After an error of Redis they are dropped."""
        while True:
            key, value = await self._waiting.get()
            try:
                await self._store.run("SET", key, value, "EX", LIFE_SECONDS)
            except FleetUnavailable:
                continue

    async def manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        """Return a manifest that the repository holds, None without one."""
        try:
            value = await self._store.run("GET", self._key(target, digest))
        except FleetUnavailable:
            return None
        if not isinstance(value, bytes) or len(value) > 2 * LARGEST:
            return None
        head, _, body = value.partition(b"\n")
        facts = read_object(head)
        media_type = facts.get("type")
        if not isinstance(media_type, str) or not is_media_type(media_type):
            return None
        if not matches(digest, body):
            return None
        return SharedManifest(body, media_type, facts.get("public") is True, Place.PEER)

    def _key(self, target: Target, digest: Digest) -> str:
        return self._store.key("manifest", target.upstream, target.repo, digest)
