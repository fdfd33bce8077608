"""The metadata of an object: the type of its content, and the repositories that may serve it.

Bytes are verified by their digest, but metadata is trusted: anyone who can write to the bucket can
give any repository access to private content.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Self

from proxy.core.errors import RegistryError
from proxy.core.names import Target, parse_repo
from proxy.core.tolerant_json import as_list, read_object

KEY: Final = "millpond"
"""Name of the metadata. Azure allows no hyphens in it."""

MAX_BYTES: Final = 1800
"""S3 allows 2 KiB for all metadata of an object."""

_SCHEMA: Final = 1


@dataclass(frozen=True, slots=True)
class ObjectMetadata:
    """``media_type`` is None for content that is not a manifest, or not known to be one.

    ``is_public``: its registry serves it to every client. ``holders`` are the repositories that
    contain it, as confirmed by their registry.
    """

    media_type: str | None = None
    is_public: bool = False
    holders: frozenset[Target] = frozenset()

    @classmethod
    def parse(cls, text: str | None) -> Self:
        """Parse an object's metadata; unreadable metadata permits nothing.

        Fields of later versions are ignored.
        """
        document = read_object((text or "").encode())
        media_type = document.get("type")
        return cls(
            media_type if isinstance(media_type, str) and media_type else None,
            document.get("public") is True,
            frozenset(_targets(as_list(document.get("in")))),
        )

    def text(self) -> str:
        """Return it as text, with as many holders as fit."""
        document: dict[str, object] = {"v": _SCHEMA, "type": self.media_type}
        document |= {"public": self.is_public, "in": []}
        names: list[str] = []
        room = MAX_BYTES - len(_shown(document))
        for name in sorted(map(str, self.holders), key=len):
            room -= len(name) + 3
            if room < 0:
                break
            names.append(name)
        return _shown(document | {"in": names})


def _shown(document: dict[str, object]) -> str:
    return json.dumps(document, separators=(",", ":"))


def _targets(names: Iterable[object]) -> Iterable[Target]:
    for name in names:
        upstream, _, repo = str(name).partition("/")
        with suppress(RegistryError):
            if upstream:
                yield Target(upstream, parse_repo(repo))
