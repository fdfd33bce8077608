"""The settings of one registry, and the registries that are built in."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from yarl import URL

from proxy.core.errors import NameInvalid
from proxy.core.selection import make_selector, split_tag
from proxy.settings.units import KeptFor, Moment, Offline, Rate, Seconds, Section

_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?(:\d{1,5})?")

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


def check_name(name: str) -> None:
    """Raise ``ValueError`` unless ``name`` can be the name of an upstream."""
    if _NAME.fullmatch(name) is None:
        raise ValueError(f"{name!r} is not a host name; write ghcr.io, lab or 10.0.0.5:5000")


class UpstreamTLS(Section):
    """How the certificate of a registry is checked, and the client certificate sent to it."""

    ca_file: Path | None = None
    """PEM file of certificate authorities to trust in addition to the system's."""
    cert_file: Path | None = None
    """PEM file of a client certificate, if the registry requires one."""
    key_file: Path | None = None
    """The unencrypted key of that certificate."""
    verify: bool = True
    """Verify the registry's certificate. `false` accepts any certificate; prefer `ca_file`."""


class ExecCredentials(Section):
    """A program that returns credentials, by the protocol of Docker's credential helpers."""

    command: tuple[str, ...]
    """Program and arguments, run without a shell. It reads the registry's name and prints
    `{"Username": …, "Secret": …}`; `expires_in` in seconds may be added."""
    env: dict[str, SecretStr] | None = None
    """Environment variables for the program, in addition to those of Millpond except `MILLPOND_…`,
    its settings."""

    @field_validator("command")
    @classmethod
    def _check_command(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value:
            raise ValueError("names no program; write [/usr/bin/docker-credential-example, get]")
        return value


class KubeletCredentials(Section):
    """A credential provider plugin of the kubelet (API v1)."""

    name: str
    """Path of the plugin."""
    args: tuple[str, ...] | None = None
    """Arguments of the plugin."""
    env: dict[str, SecretStr] | None = None
    """Environment variables for the plugin, in addition to those of Millpond except `MILLPOND_…`,
    its settings."""
    default_cache_duration: Seconds | None = None
    """How long Millpond uses an answer that does not state its own cache duration; 10 minutes if
    this is not set. Millpond uses every answer for at least a minute."""


class AWSCredentials(Section):
    """Amazon ECR and ECR Public, with the credentials that AWS's tools find."""

    role_arn: str | None = None
    """Role to assume first, for a registry of another account."""
    region: str | None = None
    """Region of the registry, if its host name does not contain it."""
    profile: str | None = None
    """Profile of AWS's configuration files."""


class GoogleCredentials(Section):
    """Google Artifact Registry, with application default credentials."""

    key_file: Path | None = None
    """Key file of a service account, or configuration of workload identity federation. Without it
    Google's libraries find the credentials, also on the metadata server."""


class AzureCredentials(Section):
    """Azure Container Registry, with a managed identity or a workload identity."""

    client_id: str | None = None
    """Client ID of the identity, if the machine has several."""


class UpstreamCredentials(Section):
    """Where the credentials for a registry come from: exactly one source."""

    docker_config: Path | None = None
    """Docker's `config.json` or Podman's `auth.json`, with its credential helpers. Millpond reads
    it again when it changes."""
    exec: ExecCredentials | None = None
    kubelet: KubeletCredentials | None = None
    aws: AWSCredentials | None = None
    google: GoogleCredentials | None = None
    azure: AzureCredentials | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError(
                "credentials have exactly one source: " + ", ".join(type(self).model_fields)
            )
        return self


class FreshnessOverride(Section):
    """Values of ``freshness`` for one registry. None: the general value applies."""

    old_names: ClassVar[dict[str, str]] = {"reserve": "rate_limit_reserve"}

    tag_ttl: Seconds | None = None
    """Overrides `freshness.tag_ttl` for this registry."""
    stale_while_revalidate: Seconds | None = None
    """Overrides `freshness.stale_while_revalidate` for this registry."""
    stale_if_error: Seconds | None = None
    """Overrides `freshness.stale_if_error` for this registry."""
    negative_ttl: Seconds | None = None
    """Overrides `freshness.negative_ttl` for this registry."""
    signature_ttl: Seconds | None = None
    """Overrides `freshness.signature_ttl` for this registry."""
    deleted_tags: KeptFor | None = None
    """Overrides `freshness.deleted_tags` for this registry."""
    rate_limit_reserve: Annotated[float, Field(ge=0, le=1)] | None = None
    """Overrides `freshness.rate_limit_reserve` for this registry."""


def _check_images(value: tuple[str, ...]) -> tuple[str, ...]:
    """Return patterns over names in a registry. Raises ``ValueError``."""
    for pattern in value:
        try:
            make_selector(*split_tag(pattern))
        except NameInvalid as error:
            raise ValueError(error.message) from None
    return value


class TagRule(Section):
    """Values for some images of a registry."""

    images: tuple[str, ...]
    """Patterns over names in this registry, such as `library/*`, `acme/**` or `acme/app:1.*`. The
    first rule that has a value for an image decides."""
    min_age: Seconds | None = None
    """Overrides `min_age` for these images; `0` lets their tags move at once."""
    first_seen: Literal["allow", "deny"] | None = None
    """Overrides `first_seen` for these images."""
    as_of: Moment | None = None
    """Overrides `as_of` for these images."""

    _check = field_validator("images")(_check_images)


class Upstream(Section):
    """One registry that Millpond pulls from."""

    url: str
    """Address of the registry, with a path if it needs one. Only an `http://` address makes
    Millpond use plain HTTP. Default: `https://` with the name, if that has a dot."""
    aliases: tuple[str, ...] = ()
    """Other names that clients use for the registry."""
    hostnames: tuple[str, ...] = ()
    """Host names of Millpond that stand for this registry. Requests to them need no prefix in the
    path."""
    library_prefix: bool = False
    """Treat `nginx` as `library/nginx`. True for docker.io; no other registry needs it."""
    username: str | None = None
    """User name at the registry. It needs `password` or `password_file`. Every client of Millpond
    can then pull what this user can pull."""
    password: SecretStr | None = None
    """Password or access token."""
    password_file: Path | None = None
    """File with the password or access token. Millpond reads it at each use."""
    credentials: UpstreamCredentials | Literal["caller"] | None = None
    """Another source of the credentials, in place of `username`. `caller`: the client's own login;
    Millpond then serves a repository only to clients that the registry lets read it."""
    caller_ttl: Seconds = 300.0
    """How long a client may read a repository after the registry has confirmed its login. Only for
    `credentials: caller`."""
    caller_stale: Seconds = 3600.0
    """How long such a confirmation lasts while the registry does not answer."""
    auth_hosts: tuple[str, ...] = ()
    """Token servers outside the registry's domain that may receive the credentials."""
    private: bool = False
    """Allow redirects to private addresses, and token servers there. A private address or
    `localhost` in `url` implies it."""
    max_downloads: Annotated[int, Field(ge=1)] = 64
    """Maximum number of concurrent blob downloads from the registry. Others wait for up to a
    quarter of `timeouts.answer`; then as many again may start. Manifests never wait."""
    max_bandwidth: Annotated[Rate, Field(ge=0)] = 0
    """Bytes per second of blobs from the registry, shared fairly by its downloads; `0` means no
    limit. Manifests are not delayed."""
    offline: Offline | None = None
    """Overrides `offline` for this registry, unless that is `true`."""
    min_age: Seconds = 0.0
    """How long a digest has to be on a tag before Millpond serves it. Until then the tag stays at
    the newest digest that is old enough. `0` follows the registry at once."""
    min_age_except: tuple[str, ...] = ()
    """Images that `min_age` does not apply to, as patterns such as `acme/**` or `library/nginx`."""
    first_seen: Literal["allow", "deny"] | None = None
    """How `min_age` treats the first image of a tag that Millpond sees: `allow` serves it, `deny`
    holds it. If it is not set, the image's creation time decides."""
    as_of: Moment | None = None
    """Serve each tag with the digest that this cache knew at this time: a day, which begins at
    00:00 UTC, or a time such as `2026-10-01T12:00:00Z`."""
    tag_rules: tuple[TagRule, ...] = ()
    tls: UpstreamTLS = UpstreamTLS()
    freshness: FreshnessOverride = FreshnessOverride()

    _check_exceptions = field_validator("min_age_except")(_check_images)

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
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
    def _check_names(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            check_name(name)
        return value

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        if self.password is not None and self.password_file is not None:
            raise ValueError("password and password_file exclude each other")
        has_secret = self.password is not None or self.password_file is not None
        if has_secret != (self.username is not None):
            raise ValueError("credentials are a username with a password or a password_file")
        if self.credentials is not None and self.username is not None:
            raise ValueError("credentials and username exclude each other")
        return self

    def secret_files(self) -> Iterator[tuple[str, Path]]:
        """Yield the files with credentials, each with its setting."""
        source = self.credentials
        files = {"password_file": self.password_file}
        if isinstance(source, UpstreamCredentials):
            files["credentials.docker_config"] = source.docker_config
            if source.google is not None:
                files["credentials.google.key_file"] = source.google.key_file
        yield from ((key, file) for key, file in files.items() if file is not None)

    @property
    def asks_as_caller(self) -> bool:
        """Requests to the registry carry the login of each client."""
        return self.credentials == "caller"

    @property
    def is_anonymous(self) -> bool:
        """Requests to the registry carry no credentials."""
        return self.username is None and self.credentials is None and self.tls.cert_file is None


def over_built_in(configured: dict[str, Any]) -> dict[str, Any]:
    """Return the configured upstreams over the built-in ones, key by key; None removes one.

    Raises ``ValueError`` for a name that is not a host name.
    """
    merged: dict[str, Any] = {name: dict(entry) for name, entry in BUILT_IN.items()}
    for name, entry in configured.items():
        check_name(str(name))
        known = merged.get(name)
        if entry is None:
            merged.pop(name, None)
        elif isinstance(entry, dict) and isinstance(known, dict):
            merged[name] = known | entry
        elif isinstance(entry, dict) and "." in str(name):
            merged[name] = {"url": f"https://{name}"} | entry
        else:
            merged[name] = entry
    return merged
