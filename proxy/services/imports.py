"""Records which images came from which imports."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from proxy.content.content import Content
from proxy.core.names import Digest
from proxy.core.tolerant_json import as_list
from proxy.services.bundle.contents import Contents

NOTE: Final = "imports"
MAX_IMPORTS: Final = 100
MAX_IMAGES: Final = 10_000
"""Maximum number of recorded images, of all imports together; the oldest imports are dropped."""


@dataclass(frozen=True, slots=True)
class Imported:
    """One import: the origin of its bundle, and the digest of each image by its name.

    ``at`` and ``created_at`` are Unix seconds. ``source`` and ``creator`` are text for people.
    """

    at: float
    source: str
    creator: str
    created_at: float
    images: Mapping[str, Digest]


class Imports:
    """The latest imports, which survive a restart."""

    def __init__(self, content: Content) -> None:
        self._content = content

    async def all(self) -> list[Imported]:
        """Return the imports, the latest last."""
        noted = as_list(await self._content.note(NOTE))
        return [_imported(one) for one in noted if isinstance(one, dict)]

    async def of(self, name: str) -> list[Imported]:
        """Return the imports that brought the image with this full name, the latest last."""
        return [one for one in await self.all() if name in one.images]

    async def add(self, contents: Contents, images: Mapping[str, Digest]) -> None:
        """Record an import that made these images visible."""
        kept = dict([*images.items()][:MAX_IMAGES])
        new = Imported(
            self._content.clock(), contents.source, contents.creator, contents.created_at, kept
        )
        imports = _bounded([*await self.all(), new])
        await self._content.set_note(NOTE, [asdict(one) for one in imports])


def _bounded(imports: Iterable[Imported]) -> list[Imported]:
    """Return the latest of ``imports``, as many as are remembered."""
    latest = [*imports][-MAX_IMPORTS:]
    while sum(len(one.images) for one in latest) > MAX_IMAGES:
        del latest[0]
    return latest


def _imported(noted: Mapping[str, Any]) -> Imported:
    images = noted.get("images")
    return Imported(
        float(noted.get("at", 0)),
        str(noted.get("source", "")),
        str(noted.get("creator", "")),
        float(noted.get("created_at", 0)),
        images if isinstance(images, dict) else {},
    )
