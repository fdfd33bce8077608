"""Finds valid signatures of an image, through the read-through cache, and stores the verdict.

A valid signature of a digest stays valid, so that verdict is durable. The absence of a signature is
not stored here. A failure of upstream is not an absence: it raises an error.
"""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING, Final

import structlog
from cachetools import LRUCache

from proxy.content.content import Content
from proxy.core.errors import DigestInvalid, NotFound, RegistryError, StorageError
from proxy.core.manifests import read_descriptor
from proxy.core.names import Digest, Tag, Target, parse_digest
from proxy.core.policy import CacheDirective
from proxy.core.records import Descriptor
from proxy.core.tolerant_json import as_list, read_object
from proxy.policies import cosign
from proxy.policies.images import Images
from proxy.repository import Cache
from proxy.repository.reading import read_blob
from proxy.runtime.executors import in_thread_if_large
from proxy.runtime.singleflight import SingleFlight

if TYPE_CHECKING:
    from proxy.policies.keys import PublicKey

MAX_SIGNATURES: Final = 64
"""Maximum number of signatures of one image that are checked, in each of the two formats."""

MAX_PAYLOAD: Final = 128 * 1024
MAX_BUNDLE: Final = 1024 * 1024
"""Bytes. Larger signatures are ignored."""

_MAX_TAG: Final = 128
_MAX_VERDICTS: Final = 50_000
_BUNDLE: Final = "application/vnd.dev.sigstore.bundle"

Check = Callable[[], Awaitable[bool]]
"""Reads one signature; returns True if it is valid. Raises ``RegistryError``."""

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Keys:
    """The keys of one policy. ``fingerprint`` identifies them together."""

    keys: "tuple[PublicKey, ...]"
    fingerprint: str

    @classmethod
    def of(cls, keys: "Collection[PublicKey]") -> "Keys":
        """Return keys in a fixed order."""
        ordered = tuple(sorted(set(keys), key=lambda key: key.fingerprint))
        text = " ".join(key.fingerprint for key in ordered)
        return cls(ordered, sha256(text.encode()).hexdigest())


class Signatures:
    """Verdicts about signatures, by digest and keys."""

    def __init__(self, cache: Cache, content: Content, images: Images) -> None:
        self._cache = cache
        self._content = content
        self._images = images
        self._signed: LRUCache[tuple[Digest, str], None] = LRUCache(_MAX_VERDICTS)
        self._searches: SingleFlight[bool] = SingleFlight("verify signatures")

    async def close(self) -> None:
        """Cancel running searches."""
        await self._searches.close()

    async def is_signed(self, target: Target, digest: Digest, keys: Keys) -> bool:
        """Return True if an image, or an index that lists it, has a signature by one of ``keys``.

        Raises ``RegistryError`` if upstream fails meanwhile.
        """
        if await self._is_known(digest, keys):
            return True
        key = (target, digest, keys.fingerprint)
        return await self._searches.do(key, lambda: self._search(target, digest, keys))

    async def _search(self, target: Target, digest: Digest, keys: Keys) -> bool:
        above = await self._images.indexes_above(target, digest)
        for index in above:
            if await self._is_known(index, keys):
                await self._remember(digest, keys)
                return True
        failure: RegistryError | None = None
        for candidate in (digest, *above):
            try:
                if await self._has_signature(target, candidate, keys):
                    for signed in {candidate, digest}:
                        await self._remember(signed, keys)
                    return True
            except RegistryError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return False

    async def _has_signature(self, target: Target, image: Digest, keys: Keys) -> bool:
        """Return True if one signature is valid. Raises the first failure if none is."""
        failure: RegistryError | None = None
        for source in (self._tagged, self._bundles):
            try:
                checks = await source(target, image, keys)
            except NotFound:
                continue
            except RegistryError as error:
                failure = failure or error
                continue
            for check in checks:
                try:
                    if await check():
                        return True
                except NotFound:
                    continue
                except RegistryError as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return False

    async def _tagged(self, target: Target, image: Digest, keys: Keys) -> list[Check]:
        """Return a check for each payload under the tag of signatures."""
        tag = Tag(f"{image.replace(':', '-', 1)}.sig")
        if len(tag) > _MAX_TAG:
            return []
        body = await self._tagged_body(target, tag)
        document = await in_thread_if_large(len(body), lambda: read_object(body))
        checks: list[Check] = []
        for layer in as_list(document.get("layers"))[:MAX_SIGNATURES]:
            found = read_descriptor(layer)
            if found is None or found.size > MAX_PAYLOAD or not isinstance(layer, dict):
                continue
            annotations = layer.get("annotations")
            if found.media_type == cosign.SIMPLE_SIGNING and isinstance(annotations, dict):
                signature = annotations.get(cosign.SIGNATURE_ANNOTATION)

                async def check(found: Descriptor = found, signature: object = signature) -> bool:
                    payload = await read_blob(self._cache.small, target, found)
                    return cosign.is_signed_payload(payload, signature, image, keys.keys)

                checks.append(check)
        return checks

    async def _tagged_body(self, target: Target, tag: Tag) -> bytes:
        """Return the manifest under a tag. Offline, the image need not be complete."""
        try:
            return (await self._cache.tags.get(target, tag, CacheDirective.REVALIDATE)).body
        except NotFound:
            record = await self._content.tags.get(target, tag)
            if record is None:
                raise
            return await self._images.body(target, record.descriptor.digest)

    async def _bundles(self, target: Target, image: Digest, keys: Keys) -> list[Check]:
        """Return a check for each referrer that is a bundle."""
        found = await self._cache.referrers.get(target, image, None, CacheDirective.REVALIDATE)
        wanted = [
            entry
            for entry in found.entries
            if str(entry.get("artifactType", _BUNDLE)).startswith(_BUNDLE)
        ]
        checks: list[Check] = []
        for entry in wanted[:MAX_SIGNATURES]:
            try:
                digest = parse_digest(str(entry["digest"]))
            except DigestInvalid:
                continue

            async def check(digest: Digest = digest) -> bool:
                return await self._is_good_bundle(target, image, digest, keys)

            checks.append(check)
        return checks

    async def _is_good_bundle(
        self, target: Target, image: Digest, referrer: Digest, keys: Keys
    ) -> bool:
        body = await self._images.body(target, referrer)
        document = await in_thread_if_large(len(body), lambda: read_object(body))
        layers = as_list(document.get("layers"))
        found = read_descriptor(layers[0]) if len(layers) == 1 else None
        if found is None or found.size > MAX_BUNDLE:
            return False
        bundle = await read_blob(self._cache.small, target, found)
        signed = await self._images.body(target, image)
        return await in_thread_if_large(
            len(bundle), lambda: cosign.is_signed_bundle(bundle, image, signed, keys.keys)
        )

    async def _is_known(self, digest: Digest, keys: Keys) -> bool:
        """Return True for a digest with a stored verdict, including from before a restart."""
        if (digest, keys.fingerprint) in self._signed:
            return True
        try:
            is_noted = await self._content.note(_note(digest, keys)) is True
        except StorageError:
            return False
        if is_noted:
            self._signed[digest, keys.fingerprint] = None
        return is_noted

    async def _remember(self, digest: Digest, keys: Keys) -> None:
        self._signed[digest, keys.fingerprint] = None
        try:
            await self._content.set_note(_note(digest, keys), value=True)
        except StorageError as error:
            log.warning("a verdict about signatures cannot be stored", error=str(error))


def _note(digest: Digest, keys: Keys) -> str:
    return f"signed {keys.fingerprint} {digest}"
