"""The parts of an explanation of an image. Times are Unix seconds; None: without limit."""

from dataclasses import dataclass
from enum import StrEnum

from proxy.core.names import Digest
from proxy.core.routing import By
from proxy.services.inventory import State


class Answer(StrEnum):
    """The result of the next pull of an image."""

    SERVE = "serve"
    """It is answered from the cache."""
    SERVE_THEN_CHECK = "serve-then-check"
    """It is answered from the cache, and the tag is checked in the background by HEAD."""
    CHECK = "check"
    """The registry is asked by HEAD; if nothing has changed, the answer is from the cache."""
    CONFIRM = "confirm"
    """The registry is asked by HEAD if this repository has the content, which is in the cache."""
    FETCH = "fetch"
    """The manifest is fetched by GET."""
    STALE = "stale"
    """The registry fails: the last good copy is the answer."""
    REFUSE = "refuse"
    """It is answered with an error."""


@dataclass(frozen=True, slots=True)
class Route:
    """The upstream of an image, and how it was chosen: ``text`` is the decisive part of a name."""

    by: By
    text: str
    upstream: str
    url: str
    repository: str


@dataclass(frozen=True, slots=True)
class RateLimit:
    """The last report of a registry; ``is_scarce``: the rest is reserved for new images."""

    limit: int
    remaining: int
    is_scarce: bool


@dataclass(frozen=True, slots=True)
class Registry:
    """The registry of an image. ``sources`` are asked before it, in order."""

    scope: str
    credentials: str
    offline: bool
    offline_mode: str
    circuit: str
    rate_limit: RateLimit | None
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Missing:
    """Content that is not held; ``size`` in bytes is from the manifest."""

    digest: Digest
    size: int


@dataclass(frozen=True, slots=True)
class Part:
    """One image of an index, or the image itself, whose ``platform`` is None.

    ``missing`` has the first pieces; ``missing_pieces`` and ``missing_bytes`` count all. Of an
    image whose manifest is not held, only the manifest is known to be missing.
    """

    platform: str | None
    digest: Digest
    state: State
    held_bytes: int
    missing: tuple[Missing, ...] = ()
    missing_pieces: int = 0
    missing_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """The held content of an image. ``is_linked``: its repository is known to have it."""

    digest: Digest | None
    media_type: str | None
    state: State
    held_bytes: int
    is_linked: bool
    parts: tuple[Part, ...] = ()


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old the answer for a tag may be.

    ``checked_at``: the registry last confirmed the tag; None: never. Until ``fresh_until`` it is
    not asked, until ``served_until`` the answer does not wait for it, and until
    ``kept_until`` a copy replaces its failure. ``changed_by`` says why the times differ from the
    settings. ``newest`` is the digest that the tag has at the registry, ``held_back_until`` is set
    if another one is served until then. ``as_of``: the tag shows this moment.
    """

    checked_at: float | None
    fresh_until: float | None
    served_until: float | None
    kept_until: float | None
    changed_by: str | None
    newest: Digest | None
    min_age: float | None
    held_back_until: float | None
    as_of: float | None


@dataclass(frozen=True, slots=True)
class Pull:
    """The result of a pull now, and the reason. ``costs``: the requests to the registry."""

    answer: Answer
    because: str
    costs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Offline:
    """The result of a pull offline: ``is_served`` if the image is complete."""

    is_served: bool
    because: str


@dataclass(frozen=True, slots=True)
class Keeping:
    """Why an image is kept or may be evicted. Sizes in bytes.

    ``is_next``: the next eviction removes it. ``oldest_use`` is the oldest last use of any content.
    ``expires_at``: time of its eviction if it is not used again.
    """

    pinned_by: tuple[str, ...]
    pin_refused: str | None
    in_use_by: tuple[str, ...]
    is_protected: bool
    last_used: float | None
    oldest_use: float | None
    expires_at: float | None
    is_next: bool
    used_bytes: int
    evicts_above_bytes: int
    limit_bytes: int


@dataclass(frozen=True, slots=True)
class Explanation:
    """The whole explanation. ``freshness`` is None for a digest, which never changes."""

    image: str
    route: Route
    registry: Registry
    held: Held
    freshness: Freshness | None
    pull: Pull
    offline: Offline
    keeping: Keeping
