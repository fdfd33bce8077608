"""One webhook, before and after it is parsed."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from proxy.core.errors import RegistryError
from proxy.core.names import Repo, Tag, is_digest, parse_repo, parse_tag

Headers = Mapping[str, str]
"""The headers of a request, by names of any case."""


class Body(NamedTuple):
    """The body of a webhook with its headers, and as a JSON object."""

    headers: Headers
    raw: bytes
    document: Mapping[str, object]


class Mention(NamedTuple):
    """A tag that may have changed, and the id of its event, "" without one."""

    repo: Repo
    tag: Tag
    event_id: str = ""


@dataclass(frozen=True, slots=True)
class Delivery:
    """The tags that may have changed, none for other events.

    ``ids`` identify the delivery as a whole: an id that was seen before marks a replay.
    """

    mentions: tuple[Mention, ...] = ()
    ids: tuple[str, ...] = ()
    is_ping: bool = False


class MalformedDelivery(ValueError):
    """The document lacks a field that its format requires, or a name breaks the grammar."""


def mapping(value: object) -> Mapping[str, object]:
    """Return a JSON object. Raises ``MalformedDelivery`` for anything else."""
    if not isinstance(value, dict):
        raise MalformedDelivery
    return value


def text(value: object) -> str:
    """Return a string. Raises ``MalformedDelivery`` for anything else."""
    if not isinstance(value, str):
        raise MalformedDelivery
    return value


def mentions(repo: object, tags: Iterable[object], event_id: str = "") -> tuple[Mention, ...]:
    """Return a mention of each tag, without digests. Raises ``MalformedDelivery``."""
    try:
        name = parse_repo(text(repo).lower())
        named = [tag for tag in map(text, tags) if not is_digest(tag)]
        return tuple(Mention(name, parse_tag(tag), event_id) for tag in named)
    except RegistryError as error:
        raise MalformedDelivery from error
