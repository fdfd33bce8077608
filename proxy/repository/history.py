"""The past digests of tags, as this cache saw them."""

from collections.abc import Mapping

from proxy.content.content import Content
from proxy.core import cool_down
from proxy.core.cool_down import show_time
from proxy.core.errors import ManifestUnknown, RequestInvalid
from proxy.core.names import Digest, Tag, Target
from proxy.repository.origins import Origin


class History:
    """The past digests of tags."""

    def __init__(self, content: Content, sources: Mapping[str, Origin]) -> None:
        self._content = content
        self._sources = sources

    async def configured(self, target: Target, tag: Tag) -> Digest | None:
        """Return the digest of a tag at the moment in the setting ``as_of``.

        None for the present. Raises ``ManifestUnknown``.
        """
        moment = self._sources[target.upstream].tag_rules.as_of(target, tag)
        return None if moment is None else await self.at(target, tag, moment)

    async def at(self, target: Target, tag: Tag, moment: float) -> Digest:
        """Return the digest of a tag at a moment.

        Raises ``ManifestUnknown``, or ``RequestInvalid`` for the future.
        """
        if moment > self._content.clock():
            when = show_time(moment)
            raise RequestInvalid(f"{target}:{tag} as of {when}: this time is in the future")
        history = await self._content.tags.history(target, tag)
        digest = cool_down.at(history, moment)
        if digest is not None:
            return digest
        first = next((entry.first_seen for entry in history if entry.first_seen > 0), None)
        seen = "has never seen it" if first is None else f"first saw it at {show_time(first)}"
        raise ManifestUnknown(f"{target}:{tag} as of {show_time(moment)}: this cache {seen}")
