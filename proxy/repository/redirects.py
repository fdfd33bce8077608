"""When a client may read a large blob from the bucket itself."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from proxy.content.content import Content
from proxy.core.names import Digest, Target

Sign = Callable[[Digest], Awaitable[str | None]]
"""Returns a URL of an object, None if the bucket is not known to have it or cannot be used."""


class Redirects:
    """URLs for blobs of at least ``min_size`` bytes. ``sizes`` are those that manifests give.

    Only content that is linked to the repository: a redirect gives it away, like its bytes.
    ``public_host`` is the host that clients are sent to.
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
        """Return where a client of a repository can GET a blob, None if it must get it here."""
        record = await self._content.record(digest)
        size = self._sizes.get((target, digest), 0) if record is None else record.size
        if size < self._min_size or not await self._content.links.is_confirmed(target, digest):
            return None
        self._content.touch(digest)
        return await self._sign(digest)
