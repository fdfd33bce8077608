"""Every setting: its name, type, default, limits and description.

``loading`` reads them from YAML, ``MILLPOND_…`` environment variables and flags. The descriptions
are the table of ``docs/configuration.md``; ``config/default.yaml`` explains when to change each.
"""

import math
import os
import re
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from proxy.core.units import Amount
from proxy.settings.access import Access
from proxy.settings.bucket import Bucket
from proxy.settings.fetching import Memory, Parallel, Prefetch
from proxy.settings.fleet import Fleet
from proxy.settings.hooks import Hook, HookName
from proxy.settings.notifications import Notification, check_names
from proxy.settings.policies import Policy
from proxy.settings.tracing import Tracing
from proxy.settings.units import (
    Disk,
    Fraction,
    KeptFor,
    Offline,
    Rate,
    Seconds,
    Section,
    Wait,
)
from proxy.settings.upstreams import FreshnessOverride, Upstream, UpstreamTLS, over_built_in
from proxy.settings.warm import Warm
from proxy.settings.watch import Watch

__all__ = [
    "Bucket",
    "Fleet",
    "Freshness",
    "FreshnessOverride",
    "Memory",
    "Policy",
    "ServerTLS",
    "Settings",
    "Storage",
    "Timeouts",
    "Tracing",
    "Upstream",
    "UpstreamTLS",
]

_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):(\d{1,5})")


def default_storage_path() -> Path:
    """Return ``/var/lib/millpond`` for root, ``$XDG_CACHE_HOME/millpond`` for other users.

    A relative ``XDG_CACHE_HOME`` is ignored (XDG Base Directory Specification). A user without a
    home directory gets a path that starts with ``~``, which validation refuses.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/millpond")
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if cache_home.is_absolute():
        return cache_home / "millpond"
    return Path(os.path.expanduser("~")) / ".cache" / "millpond"  # noqa: PTH111 - it never raises


def _absolute(path: Path) -> Path:
    """Return ``path`` with ``~`` expanded. Raises ``ValueError`` for a relative path."""
    expanded = Path(os.path.expanduser(path))  # noqa: PTH111 - it never raises
    if not expanded.is_absolute():
        raise ValueError("not an absolute path; write /srv/millpond")
    if "\0" in str(expanded):
        raise ValueError("not a path: it has a zero byte in it")
    return expanded


class ServerTLS(Section):
    """Certificate and key for HTTPS."""

    cert_file: Path
    """PEM certificate with its chain. With it, Millpond serves HTTPS. A renewed file is loaded
    without a restart."""
    key_file: Path
    """The unencrypted key of that certificate."""


class Storage(Section):
    """Where the cache is, how large it may grow, and how its content is checked."""

    old_names: ClassVar[dict[str, str]] = {"finish_from": "min_complete_ratio"}

    path: Annotated[Path, AfterValidator(_absolute)] = Field(default_factory=default_storage_path)
    """Directory of the cache, an absolute path. Only one Millpond may use it. The default for users
    other than root is `$XDG_CACHE_HOME/millpond` or `~/.cache/millpond`."""
    max_size: Disk = Amount(50 * 1024**3)
    """Maximum size of the cache, downloads in progress included: a size, or a share of the file
    system such as `80%`."""
    high_mark: Fraction = 0.95
    """Share of `max_size` above which Millpond evicts the least recently used images."""
    low_mark: Fraction = 0.90
    """Share of `max_size` at which eviction stops."""
    min_free: Disk = Amount(0, 0.02)
    """Space on the file system that Millpond leaves free: a size, or a share of the file system."""
    max_age: Seconds = math.inf
    """Evict content that has not been used for this long, even if there is space."""
    unproven_share: Fraction = 0.1
    """Share of the cached content that unverified downloads from one registry may evict. A download
    that needs more is passed through and not stored."""
    file_mode: Literal["0600", "0640"] = "0600"
    """File permissions; `0640` lets the group read."""
    min_complete_ratio: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Finish a download that all clients have abandoned if at least this share of it has arrived.
    `0` finishes every download."""
    in_use_file: Path | None = None
    """File with the images that are running now, one per line. They are not evicted."""
    scrub_every: Seconds = 30 * 86400.0
    """How often Millpond hashes all content again and repairs it; `forever` disables this."""
    scrub_rate: Rate = 20_000_000
    """Reading speed of that check; `0` means no limit."""
    bucket: Bucket | None = None

    @field_validator("max_size")
    @classmethod
    def _check_max_size(cls, value: Amount) -> Amount:
        if value.bytes <= 0 and not 0 < value.share <= 1:
            raise ValueError("too small or too large; write 50GiB, or 80% of the file system")
        return value

    @field_validator("min_free")
    @classmethod
    def _check_min_free(cls, value: Amount) -> Amount:
        if value.bytes < 0 or not 0 <= value.share < 1:
            raise ValueError("not to be kept free; write 0, 5GiB, or 5% of the file system")
        return value

    @field_validator("file_mode", mode="before")
    @classmethod
    def _octal(cls, value: object) -> object:
        return f"{value:04o}" if isinstance(value, int) else value  # YAML reads 0600 as octal

    @model_validator(mode="after")
    def _check_marks(self) -> Self:
        if self.low_mark > self.high_mark:
            raise ValueError("low_mark is above high_mark")
        return self


class Freshness(Section):
    """How old the answer for a tag may be (RFC 5861, RFC 9111)."""

    old_names: ClassVar[dict[str, str]] = {"reserve": "rate_limit_reserve"}

    tag_ttl: Seconds = 300.0
    """How long Millpond answers a tag without asking the registry. Shorter: new images appear
    sooner. Longer: fewer requests."""
    stale_while_revalidate: Seconds = 3600.0
    """How long after that Millpond still answers at once and checks the tag in the background."""
    stale_if_error: Seconds = math.inf
    """How long after `tag_ttl` Millpond serves the last good copy while the registry fails."""
    negative_ttl: Seconds = 30.0
    """How long Millpond remembers that something does not exist."""
    signature_ttl: Seconds = 30.0
    """`tag_ttl` for tags that change in place: signatures, attestations, SBOMs."""
    deleted_tags: KeptFor = 0.0
    """What happens to a tag that the registry has deleted: `follow` removes it too, `keep` retains
    it, `keep 30d` retains it for that long after the registry last confirmed it."""
    rate_limit_reserve: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the registry's rate limit that is reserved for images that are not in the cache."""


class Timeouts(Section):
    """Time limits for registries, and for clients that do not read."""

    connect: Wait = 5.0
    """Time for a registry to accept a connection."""
    answer: Wait = 20.0
    """Time for a registry to begin its answer, tokens and redirects included. Keep it below 30
    seconds, after which containerd stops waiting."""
    check: Wait = 3.0
    """Time for a registry to confirm a cached tag. After that Millpond serves the cached copy, and
    the check continues in the background."""
    idle: Wait = 30.0
    """Maximum pause between two pieces of a body from a registry."""
    send: Wait = 60.0
    """Disconnect a client that reads nothing of its answer for this long. A slow client is not
    disconnected."""


class Patience(Section):
    """How Millpond treats a registry that fails."""

    retries: Annotated[int, Field(ge=0, le=10)] = 2
    """Additional attempts before the first byte of an answer, with growing pauses."""
    resumes: Annotated[int, Field(ge=0, le=100)] = 5
    """Additional attempts after a body breaks off, each from the last byte. The count starts anew
    when an attempt makes progress."""
    failures: Annotated[int, Field(ge=1)] = 5
    """Consecutive failures after which Millpond stops asking a registry for a while."""
    pause: Seconds = 5.0
    """Length of that pause. It doubles each time, up to one minute."""
    cool_down: Seconds = 30.0
    """Pause after a 429 that names no time."""


class Admin(Section):
    """How the operator reaches Millpond."""

    socket: bool = True
    """Create the admin socket `admin.sock` in the cache directory, for the user of Millpond."""
    token_file: Path | None = None
    """File with the admin token, which gives the same access over the network."""


class Bundles(Section):
    """Keys of bundles, which are files with images for another cache."""

    trusted_keys: tuple[Path, ...] = ()
    """Files of public keys in OpenSSH's format (Ed25519). `millpond import` accepts bundles that
    are signed by one of them."""
    signing_key_file: Path | None = None
    """Private key that signs exports; `millpond key new FILE` creates one."""


class Log(Section):
    """What is logged, and in which format."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe level that is logged."""
    format: Literal["auto", "console", "json"] = "auto"
    """`auto` means `console` on a terminal and `json` elsewhere."""


class Settings(Section):
    """The whole configuration."""

    old_names: ClassVar[dict[str, str]] = {"trusted_proxies": "access.trusted_proxies"}

    listen: str = "127.0.0.1:5000"
    """Address and port. `0.0.0.0:5000` serves the network; `[::1]:5000` is IPv6."""
    workers: Annotated[int, Field(ge=1, le=256)] | Literal["auto"] = 1
    """Number of processes that answer clients. `1`: one process does everything. More: workers that
    answer hits, beside a main process for everything else. `auto`: one for each core."""
    tls: ServerTLS | None = None
    shutdown_delay: Seconds = 0.0
    """After SIGTERM, how long `/-/readyz` answers 503 before the port closes. Set it behind a load
    balancer."""
    shutdown_grace: Seconds = 30.0
    """After SIGTERM, how long running responses may continue."""
    storage: Storage = Field(default_factory=Storage)
    default_upstream: str = "docker.io"
    """Registry for names that contain no registry. It must be one of `upstreams`."""
    upstreams: dict[str, Upstream] = Field(default_factory=dict)
    freshness: Freshness = Freshness()
    offline: Offline = False
    """`true`: contact no registry; serve complete images, and answer 404 for everything else.
    `auto`: do so for a registry while it fails, see `patience.failures`."""
    fallback: tuple[Annotated[Path, AfterValidator(_absolute)], ...] = ()
    """Directories of other Millponds to read from, such as a mounted removable disk. They
    are asked before the registries and never written to."""
    fleet: Fleet = Fleet()
    catalog: bool = False
    """Let `/v2/_catalog` list the repositories that the cache knows."""
    pins: tuple[str, ...] = ()
    """Images, or patterns over image names, that are never evicted."""
    admin: Admin = Admin()
    access: Access = Field(default_factory=Access)
    policies: tuple[Policy, ...] = ()
    warm: tuple[Warm, ...] = ()
    watch: Watch = Watch()
    hooks: dict[HookName, Hook] = Field(default_factory=dict)
    notifications: tuple[Notification, ...] = ()
    bundles: Bundles = Bundles()
    timeouts: Timeouts = Timeouts()
    patience: Patience = Patience()
    parallel: Parallel = Parallel()
    prefetch: Prefetch = Prefetch()
    memory: Memory = Memory()
    log: Log = Log()
    tracing: Tracing = Tracing()

    @property
    def host(self) -> str:
        """The address to listen on, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 lets the system choose."""
        return int(self.listen.rpartition(":")[2])

    @property
    def processes(self) -> int:
        """How many processes answer clients; 1: there are no workers."""
        return len(os.sched_getaffinity(0)) if self.workers == "auto" else self.workers

    @property
    def most_downloads(self) -> int:
        """The largest ``max_downloads`` of all upstreams."""
        return max(upstream.max_downloads for upstream in self.upstreams.values())

    def offline_mode(self, upstream: str) -> str:
        """Return ``true``, ``false`` or ``auto`` for one upstream."""
        own = self.upstreams[upstream].offline
        return str(self.offline if own is None or self.offline is True else own).lower()

    def freshness_of(self, upstream: str) -> Freshness:
        """Return the freshness settings of one upstream, its overrides applied."""
        override = self.upstreams[upstream].freshness.model_dump(exclude_none=True)
        return self.freshness.model_copy(update=override)

    @field_validator("listen")
    @classmethod
    def _check_listen(cls, value: str) -> str:
        match = _LISTEN.fullmatch(value)
        if match is None or int(match[2]) > 65535:
            raise ValueError("not an address; write 127.0.0.1:5000 or [::1]:5000")
        return value

    @field_validator("upstreams", mode="before")
    @classmethod
    def _with_built_in(cls, value: object) -> object:
        return over_built_in(value) if isinstance(value, dict) else value

    @model_validator(mode="after")
    def _expect_callers(self) -> Self:
        if any(upstream.asks_as_caller for upstream in self.upstreams.values()):
            self.access.expect_callers()
        return self

    _check_receivers = field_validator("notifications")(check_names)

    @model_validator(mode="after")
    def _check_fallback(self) -> Self:
        own = self.storage.path
        for path in self.fallback:
            if path == own or own in path.parents or path in own.parents:
                raise ValueError(
                    f"fallback: {path} is where this cache itself is ({own}); "
                    "name another cache's directory"
                )
        if len(set(self.fallback)) < len(self.fallback):
            raise ValueError("fallback: a directory is named twice")
        return self

    @model_validator(mode="after")
    def _check_upstream_names(self) -> Self:
        owner: dict[str, str] = {}
        for name, upstream in self.upstreams.items():
            for claimed in {name, *upstream.aliases, *upstream.hostnames}:
                if claimed in owner:
                    raise ValueError(
                        f"upstreams: {owner[claimed]} and {name} both claim the name {claimed}"
                    )
                owner[claimed] = name
        if self.default_upstream not in self.upstreams:
            raise ValueError(
                f"default_upstream: {self.default_upstream!r} is not among the upstreams: "
                + ", ".join(self.upstreams)
            )
        return self
