"""Every setting: its name, type, default and limits. The one place where they are declared.

YAML, overridden by ``MILLPOND_…`` environment variables, overridden by flags.
``configuration`` reads those and words the errors; ``config/default.yaml`` documents every key.
"""

import math
import os
import re
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ByteSize,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from yarl import URL

from proxy.settings.units import Amount, Bytes, Disk, Fraction, KeptFor, Rate, Seconds, Wait

_UPSTREAM_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(:\d{1,5})?")
_LISTEN = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]]+):(\d{1,5})")

BUILT_IN: Final[dict[str, dict[str, Any]]] = {
    "docker.io": {
        "url": "https://registry-1.docker.io",
        "aliases": ["index.docker.io", "registry-1.docker.io"],
        "library_prefix": True,
    },
    "ghcr.io": {"url": "https://ghcr.io"},
    "quay.io": {"url": "https://quay.io"},
    "gcr.io": {"url": "https://gcr.io"},
    "registry.k8s.io": {"url": "https://registry.k8s.io"},
    "mcr.microsoft.com": {"url": "https://mcr.microsoft.com"},
    "public.ecr.aws": {"url": "https://public.ecr.aws"},
}


def default_storage_path() -> Path:
    """Return ``/var/lib/millpond`` for root, ``$XDG_CACHE_HOME/millpond`` for anybody else.

    A relative ``XDG_CACHE_HOME`` is ignored, as the XDG Base Directory Specification demands. A
    user without a home directory gets a path that cannot be used, which names the mistake.
    """
    if os.geteuid() == 0:
        return Path("/var/lib/millpond")
    cache_home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if cache_home.is_absolute():
        return cache_home / "millpond"
    return Path(os.path.expanduser("~")) / ".cache" / "millpond"  # noqa: PTH111 - it never raises


def _usable_directory(path: Path) -> Path:
    """Return an absolute path. Raises ``ValueError`` for one that depends on where we run."""
    expanded = Path(os.path.expanduser(path))  # noqa: PTH111 - it never raises
    if not expanded.is_absolute():
        raise ValueError("not an absolute path; write /srv/millpond")
    if "\0" in str(expanded):
        raise ValueError("not a path: it has a zero byte in it")
    return expanded


class Section(BaseModel):
    """A mapping of settings: complete, unchangeable, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ServerTLS(Section):
    """What HTTPS is served with. A renewed file is picked up without a restart."""

    cert_file: Path
    key_file: Path


class UpstreamTLS(Section):
    """How an upstream's certificate is checked, and what we show it."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    verify: bool = True


class Storage(Section):
    """Where content lives and how much of it."""

    path: Annotated[Path, AfterValidator(_usable_directory)] = Field(
        default_factory=default_storage_path
    )
    max_size: Disk = Amount(50 * 1024**3)
    high_mark: Fraction = 0.95
    low_mark: Fraction = 0.90
    min_free: Disk = Amount(0, 0.02)
    max_age: Seconds = math.inf
    unproven_share: Fraction = 0.1
    file_mode: Literal["0600", "0640"] = "0600"
    finish_from: Annotated[float, Field(ge=0, le=1)] = 0.0
    in_use_file: Path | None = None
    scrub_every: Seconds = 30 * 86400.0
    scrub_rate: Rate = 20_000_000

    @field_validator("max_size")
    @classmethod
    def _something(cls, value: Amount) -> Amount:
        if value.bytes <= 0 and not 0 < value.share <= 1:
            raise ValueError("too small or too large; write 50GiB, or 80% of the file system")
        return value

    @field_validator("min_free")
    @classmethod
    def _not_all(cls, value: Amount) -> Amount:
        if value.bytes < 0 or not 0 <= value.share < 1:
            raise ValueError("not to be kept free; write 0, 5GiB, or 5% of the file system")
        return value

    @field_validator("file_mode", mode="before")
    @classmethod
    def _octal(cls, value: object) -> object:
        return f"{value:04o}" if isinstance(value, int) else value

    @model_validator(mode="after")
    def _marks_in_order(self) -> Self:
        if self.low_mark > self.high_mark:
            raise ValueError("low_mark is above high_mark")
        return self


class Freshness(Section):
    """How old an answer may be, in seconds (RFC 5861, RFC 9111)."""

    tag_ttl: Seconds = 300.0
    stale_while_revalidate: Seconds = 3600.0
    stale_if_error: Seconds = math.inf
    negative_ttl: Seconds = 30.0
    signature_ttl: Seconds = 30.0
    deleted_tags: KeptFor = 0.0
    reserve: Annotated[float, Field(ge=0, le=1)] = 0.1


class FreshnessOverride(Section):
    """What one upstream does differently. None: as everywhere."""

    tag_ttl: Seconds | None = None
    stale_while_revalidate: Seconds | None = None
    stale_if_error: Seconds | None = None
    negative_ttl: Seconds | None = None
    signature_ttl: Seconds | None = None
    deleted_tags: KeptFor | None = None
    reserve: Annotated[float, Field(ge=0, le=1)] | None = None


class Upstream(Section):
    """One registry that is pulled from."""

    url: str
    aliases: tuple[str, ...] = ()
    hostnames: tuple[str, ...] = ()
    library_prefix: bool = False
    username: str | None = None
    password: SecretStr | None = None
    password_file: Path | None = None
    auth_hosts: tuple[str, ...] = ()
    private: bool = False
    max_downloads: Annotated[int, Field(ge=1)] = 64
    tls: UpstreamTLS = UpstreamTLS()
    freshness: FreshnessOverride = FreshnessOverride()

    @field_validator("url")
    @classmethod
    def _plain_address(cls, value: str) -> str:
        try:
            url = URL(value)
        except ValueError:
            url = URL()
        if url.scheme not in ("http", "https") or not url.host:
            raise ValueError("not an address; write https://registry.example.com")
        if url.user or url.query_string or url.fragment:
            raise ValueError("takes scheme, host, port and path only; credentials have own keys")
        return value.rstrip("/")

    @field_validator("aliases", "hostnames", "auth_hosts")
    @classmethod
    def _host_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            _check_name(name)
        return value

    @model_validator(mode="after")
    def _whole_credentials(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file exclude each other")
        secret = self.password is not None or self.password_file is not None
        if secret != (self.username is not None):
            raise ValueError("credentials are a username with a password or a password_file")
        return self


class Timeouts(Section):
    """How long an upstream may take, and a client that reads nothing, in seconds."""

    connect: Wait = 5.0
    answer: Wait = 20.0
    check: Wait = 3.0
    idle: Wait = 30.0
    send: Wait = 60.0


class Patience(Section):
    """How upstreams that fail are treated."""

    retries: Annotated[int, Field(ge=0, le=10)] = 2
    resumes: Annotated[int, Field(ge=0, le=100)] = 5
    failures: Annotated[int, Field(ge=1)] = 5
    pause: Seconds = 5.0
    cool_down: Seconds = 30.0


class Admin(Section):
    """Who may change something while it runs."""

    socket: bool = True
    token_file: Path | None = None


class Parallel(Section):
    """Over how many connections one large blob is fetched."""

    connections: Annotated[int, Field(ge=1, le=16)] = 4
    start_from: Bytes = ByteSize(32 * 1024**2)


class Prefetch(Section):
    """What is fetched of an image before it is asked for; no blobs: nothing."""

    blobs: Annotated[int, Field(ge=0)] = 40
    max_bytes: Bytes = ByteSize(1024**3)
    at_once: Annotated[int, Field(ge=1)] = 10
    give_up: Wait = 5.0


class Memory(Section):
    """How much is kept in RAM."""

    manifests: Bytes = ByteSize(64 * 1024**2)
    blobs: Bytes = ByteSize(64 * 1024**2)
    largest_blob: Bytes = ByteSize(128 * 1024)


class Log(Section):
    """What is logged, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class Settings(Section):
    """The whole configuration."""

    listen: str = "127.0.0.1:5000"
    tls: ServerTLS | None = None
    trusted_proxies: tuple[str, ...] = ()
    shutdown_delay: Seconds = 0.0
    shutdown_grace: Seconds = 30.0
    storage: Storage = Field(default_factory=Storage)
    default_upstream: str = "docker.io"
    upstreams: dict[str, Upstream] = Field(default_factory=dict)
    freshness: Freshness = Freshness()
    offline: bool = False
    fallback: tuple[Annotated[Path, AfterValidator(_usable_directory)], ...] = ()
    catalog: bool = False
    pins: tuple[str, ...] = ()
    admin: Admin = Admin()
    timeouts: Timeouts = Timeouts()
    patience: Patience = Patience()
    parallel: Parallel = Parallel()
    prefetch: Prefetch = Prefetch()
    memory: Memory = Memory()
    log: Log = Log()

    @property
    def host(self) -> str:
        """The address to listen on, without brackets."""
        return self.listen.rpartition(":")[0].strip("[]")

    @property
    def port(self) -> int:
        """The port to listen on; 0 lets the system choose."""
        return int(self.listen.rpartition(":")[2])

    @property
    def most_downloads(self) -> int:
        """The largest ``max_downloads`` of all upstreams."""
        return max(upstream.max_downloads for upstream in self.upstreams.values())

    def freshness_of(self, upstream: str) -> Freshness:
        """Return the freshness that holds for an upstream, overrides applied."""
        override = self.upstreams[upstream].freshness.model_dump(exclude_none=True)
        return self.freshness.model_copy(update=override)

    @field_validator("listen")
    @classmethod
    def _host_and_port(cls, value: str) -> str:
        match = _LISTEN.fullmatch(value)
        if match is None or int(match[2]) > 65535:
            raise ValueError("not an address; write 127.0.0.1:5000 or [::1]:5000")
        return value

    @field_validator("trusted_proxies")
    @classmethod
    def _networks(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError(
                    f"{network!r} is no address or network; write 10.0.0.5 or 10.0.0.0/8"
                ) from None
        return value

    @field_validator("upstreams", mode="before")
    @classmethod
    def _over_built_in(cls, value: object) -> object:
        """Lay what is configured over the built-in upstreams; ``null`` takes one away."""
        if not isinstance(value, dict):
            return value
        merged: dict[str, object] = {name: dict(entry) for name, entry in BUILT_IN.items()}
        for name, entry in value.items():
            _check_name(str(name))
            known = merged.get(name)
            if entry is None:
                merged.pop(name, None)
            elif isinstance(entry, dict) and isinstance(known, dict):
                merged[name] = known | entry
            else:
                merged[name] = entry
        return merged

    @model_validator(mode="after")
    def _fallback_is_elsewhere(self) -> Self:
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
    def _names_are_unique(self) -> Self:
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


def _check_name(name: str) -> None:
    if _UPSTREAM_NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a host name; write ghcr.io, lab or 10.0.0.5:5000")
