"""Facts about tags, as messages between replicas. No I/O.

Facts are ordered by the time at which the registry was asked, by the clock of Redis.
"""

import json
from collections.abc import Mapping
from typing import Final, NamedTuple

from proxy.core.errors import RegistryError
from proxy.core.manifests import is_media_type
from proxy.core.names import Digest, Tag, Target, parse_digest, parse_repo, parse_tag
from proxy.core.records import Descriptor

MAX_NAME: Final = 255
_MAX_SIZE: Final = 1 << 40

GONE: Final = Descriptor("", Digest(""), 0)
"""The descriptor of a tag that the registry has deleted."""

DROPPED: Final = Descriptor("dropped", Digest(""), 0)
"""Where a tag points that an operator has dropped: all replicas forget it and its history."""

Key = tuple[Target, Tag]


class Fact(NamedTuple):
    """A tag pointed to ``descriptor`` when the registry was asked ``at`` (seconds of Redis)."""

    target: Target
    tag: Tag
    descriptor: Descriptor
    at: float

    @property
    def key(self) -> Key:
        """The tag of this fact."""
        return self.target, self.tag

    @property
    def is_gone(self) -> bool:
        """The tag points nowhere."""
        return not self.descriptor.digest

    def encoded(self) -> bytes:
        """Return it as JSON; ``read_fact`` reads that."""
        found = self.descriptor
        return json.dumps(
            {
                **named(self.key),
                "digest": found.digest,
                "type": found.media_type,
                "size": found.size,
                "at": self.at,
            }
        ).encode()


def newest(one: Fact | None, other: Fact) -> Fact:
    """Return the newer fact; of two of the same time, the one with the greater digest.

    So all replicas choose the same one, in whatever order they get them.
    """
    if one is None or _order(other) > _order(one):
        return other
    return one


def _order(fact: Fact) -> tuple[float, str]:
    return fact.at, fact.descriptor.digest


def named(key: Key) -> dict[str, str]:
    """Return the names of a tag as JSON values."""
    (upstream, repo), tag = key
    return {"upstream": upstream, "repo": repo, "tag": tag}


def read_key(message: Mapping[str, object]) -> Key | None:
    """Return the tag that a message is about; None if it is malformed."""
    upstream, repo, tag = (message.get(name) for name in ("upstream", "repo", "tag"))
    if not (isinstance(upstream, str) and isinstance(repo, str) and isinstance(tag, str)):
        return None
    try:
        return Target(upstream[:MAX_NAME], parse_repo(repo)), parse_tag(tag)
    except RegistryError:
        return None


def read_fact(message: Mapping[str, object]) -> Fact | None:
    """Return the fact in a message; None if there is none that this version understands."""
    key, at, found = read_key(message), message.get("at"), _descriptor(message)
    if key is None or found is None:
        return None
    if not isinstance(at, int | float) or not 0 <= at < float("inf"):
        return None
    return Fact(*key, found, float(at))


def _descriptor(message: Mapping[str, object]) -> Descriptor | None:
    """Return where a tag points; without a digest nowhere, for whatever reason."""
    media_type, size, digest = (message.get(name) for name in ("type", "size", "digest"))
    if digest == "":
        return DROPPED if media_type == DROPPED.media_type else GONE
    digest = _digest(digest)
    if digest is None or not isinstance(media_type, str) or not is_media_type(media_type):
        return None
    if not isinstance(size, int) or not 0 <= size < _MAX_SIZE:
        return None
    return Descriptor(media_type, digest, size)


def _digest(value: object) -> Digest | None:
    try:
        return parse_digest(value) if isinstance(value, str) else None
    except RegistryError:
        return None
