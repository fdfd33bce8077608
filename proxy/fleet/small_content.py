"""Small manifests in Redis, so that replicas find them after those that had them are gone.

The bytes are verified by digest.
"""

import json
from typing import Final

from proxy.core.errors import FleetUnavailable
from proxy.core.manifests import is_media_type
from proxy.core.names import Digest, Target, matches
from proxy.core.records import Descriptor
from proxy.core.sources import Place, SharedManifest
from proxy.core.tolerant_json import read_object
from proxy.fleet.small_values import SmallValues
from proxy.fleet.store import Store

LARGEST: Final = 64 * 1024
"""Bytes; larger manifests come from replicas or the bucket."""


class SmallContent:
    """Manifests of up to ``LARGEST`` bytes. Run ``run`` as a task."""

    def __init__(self, store: Store) -> None:
        self._values = SmallValues(store, "manifest")
        self.run: Final = self._values.run

    def add(self, target: Target, descriptor: Descriptor, body: bytes, is_public: bool) -> None:  # noqa: FBT001 - a callback
        """Send a verified manifest that the registry has confirmed for a repository."""

        async def value() -> bytes:
            facts = {"type": descriptor.media_type, "public": is_public}
            return json.dumps(facts).encode() + b"\n" + body

        if len(body) <= LARGEST:
            self._values.add(target, descriptor.digest, value)

    async def manifest(self, target: Target, digest: Digest) -> SharedManifest | None:
        """Return a manifest that the repository holds, None without one."""
        try:
            value = await self._values.get(target, digest)
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
