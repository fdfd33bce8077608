"""Counts pulls and bytes by image: bounded, and kept over restarts.

Clients look up a tag and then pull the digest, so a pull by digest counts for the tag that points
to it. A manifest in an index is part of a pull and not counted. Images share blobs, so the bytes of
a repository are divided among its images by their pulls, or count for the image that was pulled
last.
"""

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import structlog

from proxy.content.content import Content
from proxy.core.errors import StorageError
from proxy.core.names import Digest, Target, is_digest
from proxy.core.tolerant_json import as_list
from proxy.runtime.tally import Key, Tally

MAX_EACH: Final = 1000
"""Maximum number of images kept by pulls, and again by bytes."""

FOLD_SECONDS: Final = 60.0
KEEP_SECONDS: Final = 300.0
_NOTE: Final = "top"

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class ImagePulls:
    """Pulls and bytes of one image; ``last_pull`` in Unix seconds."""

    name: str
    pulls: int = 0
    bytes: int = 0
    last_pull: float = 0.0


class Popularity:
    """The images that clients pulled."""

    def __init__(self, content: Content, tally: Tally) -> None:
        self._content = content
        self._tally = tally
        self._images: dict[str, ImagePulls] = {}
        self._folding = asyncio.Lock()
        self._is_loaded = False
        self._has_changed = False

    async def run(self) -> None:
        """Count until cancelled; store the counts every few minutes."""
        kept = self._content.clock()
        while True:
            await self.fold()
            if abs((now := self._content.clock()) - kept) >= KEEP_SECONDS:
                kept = now
                await self._save()
            await asyncio.sleep(FOLD_SECONDS)

    async def close(self) -> None:
        """Count and store the pulls until now."""
        await self.fold()
        await self._save()

    def top(self, by: str, limit: int) -> list[ImagePulls]:
        """Return the images with the most ``pulls`` or ``bytes``."""
        images = [one for one in self._images.values() if getattr(one, by)]
        return sorted(images, key=lambda one: (-getattr(one, by), one.name))[:limit]

    def pulls(self, name: str) -> int:
        """Return how often an image was pulled, by the counts that were kept."""
        known = self._images.get(name)
        return 0 if known is None else known.pulls

    async def fold(self) -> None:
        """Count the pulls and bytes since the last call."""
        async with self._folding:
            await self._load()
            counts = self._tally.drain()
            if not counts:
                return
            self._has_changed = True
            pulls = await self._pulled(counts)
            for target, size in ((key[0], size) for key, size in counts.items() if not key[1]):
                self._divide(target, size, pulls.get(target, {}))
            self._shrink()

    async def _pulled(self, counts: Mapping[Key, int]) -> dict[Target, Counter[str]]:
        """Count pulls; return them by repository and name."""
        pulls: defaultdict[Target, Counter[str]] = defaultdict(Counter)
        now = self._content.clock()
        for (target, ref), count in counts.items():
            name = await self._name(target, ref) if ref else None
            if name is not None:
                image = self._images.setdefault(name, ImagePulls(name))
                image.pulls += count
                image.last_pull = now
                pulls[target][name] += count
        return pulls

    async def _name(self, target: Target, ref: str) -> str | None:
        """Return the image for which a pull counts, None if it was part of another pull."""
        if not is_digest(ref):
            return f"{target}:{ref}"
        try:
            for image in await self._content.tags.pointing_to(Digest(ref)):
                if image.target == target:
                    return image.name
            if await self._content.graph.is_listed(Digest(ref)):
                return None
        except StorageError as error:
            log.warning("pulls cannot be attributed to a tag", error=str(error))
        return f"{target}@{ref}"

    def _divide(self, target: Target, size: int, pulls: Mapping[str, int]) -> None:
        """Add the bytes of a repository to its images."""
        if not pulls:
            starts = (f"{target}:", f"{target}@")
            known = [one for one in self._images.values() if one.name.startswith(starts)]
            if not known:
                return
            pulls = {max(known, key=lambda one: one.last_pull).name: 1}
        total = sum(pulls.values())
        for name, count in pulls.items():
            self._images[name].bytes += size * count // total

    def _shrink(self) -> None:
        """If there are too many images, drop those with few pulls and bytes."""
        if len(self._images) > 3 * MAX_EACH:
            kept = (*self.top("pulls", MAX_EACH), *self.top("bytes", MAX_EACH))
            self._images = {one.name: one for one in kept}

    async def _load(self) -> None:
        if self._is_loaded:
            return
        try:
            noted = as_list(await self._content.note(_NOTE))
        except StorageError as error:
            log.warning("counts of pulls cannot be read", error=str(error))
            return
        self._is_loaded = True
        for row in noted:
            match row:
                case [str(name), int(pulls), int(size), int() | float() as last_pull]:
                    self._images[name] = ImagePulls(name, pulls, size, last_pull)

    async def _save(self) -> None:
        if not (self._is_loaded and self._has_changed):
            return
        self._has_changed = False
        rows = [[one.name, one.pulls, one.bytes, one.last_pull] for one in self._images.values()]
        try:
            await self._content.set_note(_NOTE, rows)
        except StorageError as error:
            self._has_changed = True
            log.warning("counts of pulls cannot be stored", error=str(error))
