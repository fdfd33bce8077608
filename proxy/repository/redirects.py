"""Redirects of clients to large blobs in the bucket."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from proxy.content.content import Content
from proxy.core.names import Digest, Target

Sign = Callable[[Digest], Awaitable[str | None]]
"""Returns a URL of an object, None if the bucket is not known to have it or cannot be used."""


class Redirects:
    """URLs for blobs of at least ``min_size`` bytes. ``sizes`` are from manifests.

    Only for content that is linked to the repository: a redirect gives access to it.
    ``public_host`` is the host of the URLs.
    """

    def __init__(
        self,
        content: Content,
        sizes: Mapping[tuple[Target, Digest], int],
        sign: Sign,
        *,
        min_size: int,
        public_host: str,
    ) -> None:
        self._content = content
        self._sizes = sizes
        self._sign = sign
        self._min_size = min_size
        self.public_host: Final = public_host

    async def url(self, target: Target, digest: Digest) -> str | None:
        """Return a URL by which a client can GET a blob, None if Millpond must send it."""
        record = await self._content.record(digest)
        size = self._sizes.get((target, digest), 0) if record is None else record.size
        if size < self._min_size or not await self._content.links.is_confirmed(target, digest):
            return None
        self._content.touch(digest)
        return await self._sign(digest)
