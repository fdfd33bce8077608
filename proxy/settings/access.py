"""The settings of ``access``: who may pull what, how clients authenticate, and limits."""

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, PrivateAttr, field_validator, model_validator

from proxy.settings.units import Bytes, Rate, Seconds, Section

TO_PREFIXES = ("user:", "group:", "network:")


class OIDCIssuer(Section):
    """An issuer of ID tokens (OpenID Connect Core 1.0), which clients send as their password."""

    issuer: str
    """URL of the issuer, as in the token's `iss`. Millpond finds its keys through
    `/.well-known/openid-configuration`."""
    audience: str
    """Value that the token's `aud` must contain."""
    user: str = "{sub}"
    """Name of the user; `{claim}` inserts a claim of the token."""
    groups_claim: str | None = None
    """Claim that lists the user's groups."""
    require: dict[str, str] = Field(default_factory=dict)
    """Claims that a token must have with exactly these values, such as `repository_owner_id`."""
    algorithms: tuple[Literal["RS256", "PS256", "ES256", "ES384", "EdDSA"], ...] = (
        "RS256",
        "ES256",
    )
    """Signature algorithms that the issuer may use."""
    ca_file: Path | None = None
    """PEM file of certificate authorities to trust for this issuer."""

    @field_validator("issuer")
    @classmethod
    def _check_issuer(cls, value: str) -> str:
        """Refuse plain HTTP to other machines: a forged key would let anyone be any user."""
        url = urlsplit(value)
        is_local = url.hostname in ("localhost", "127.0.0.1", "::1")
        if not url.hostname or url.scheme not in (("https", "http") if is_local else ("https",)):
            raise ValueError("not an https URL; write https://token.actions.githubusercontent.com")
        return value


class ClientCertificates(Section):
    """Client certificates (mutual TLS); needs `tls`."""

    ca_file: Path
    """PEM file of the authorities whose client certificates are accepted."""
    user: Literal["cn", "email", "dns", "uri"] = "cn"
    """The name in the certificate that becomes the user."""


class Rule(Section):
    """One rule. The first that matches decides."""

    allow: Literal["pull", "admin"] | None = None
    """What the rule allows."""
    deny: Literal["pull", "admin"] | None = None
    """What the rule denies."""
    images: tuple[str, ...] = ("**",)
    """Patterns over repository names with their registry, as in commands: `*` within one component,
    `**` across. Without tags and digests. The first component of a pattern with `/` that allows is
    the registry; other patterns that begin with a wildcard match at any depth."""
    to: tuple[str, ...] = ()
    """Users, groups and networks: `user:NAME`, `group:NAME`, `network:NAME`. In a name, `*` stands
    for anything without a `/`, and `**` between slashes for any number of components. Empty:
    everybody."""
    because: str | None = None
    """Reason that clients see when the rule denies."""

    @property
    def is_admin(self) -> bool:
        """The rule is about administration, not about pulls."""
        return "admin" in (self.allow, self.deny)

    @property
    def text(self) -> str:
        """The rule in one line."""
        verb = f"allow {self.allow}" if self.allow else f"deny {self.deny}"
        images = "" if self.is_admin else f" {', '.join(self.images)}"
        return f"{verb}{images} to {', '.join(self.to) or 'everybody'}"

    def named(self, kind: str) -> list[str]:
        """Return the names in ``to`` of one kind: ``user``, ``group`` or ``network``."""
        entries = (entry.partition(":") for entry in self.to)
        return [name for found, _, name in entries if found == kind]

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.allow is None) == (self.deny is None):
            raise ValueError("a rule has either allow or deny; write allow: pull")
        if self.allow == "admin" and not self.to:
            raise ValueError('allow: admin without to allows every client; add to: ["user:…"]')
        if self.is_admin and self.images != ("**",):
            raise ValueError("a rule about admin has no images; remove them")
        for entry in self.to:
            if not entry.startswith(TO_PREFIXES) or entry.endswith(":"):
                raise ValueError(f"to: {entry!r}; write user:NAME, group:NAME or network:NAME")
        return self


class Limits(Section):
    """Limits for each client, by user or else by address."""

    requests_per_second: Annotated[float, Field(gt=0)] | None = None
    """Requests per second of one client."""
    bytes_per_second: Annotated[Rate, Field(ge=0)] | None = None
    """Bytes per second, over all transfers of the client."""
    downloads: Annotated[int, Field(ge=1)] | None = None
    """Concurrent transfers of blobs to one client."""


class Access(Section):
    """Who may pull what. Without these settings every client that reaches the port may pull."""

    anonymous: bool = True
    """Let clients without credentials pull images that the rules allow to all clients. `false`:
    every client must authenticate."""
    htpasswd_file: Path | None = None
    """File of users with bcrypt hashes, as `htpasswd -B` and `millpond user` write it. Millpond
    reads it again when it changes."""
    tokens_file: Path | None = None
    """File of access tokens (name, SHA-256 of the token, groups, expiry), which `millpond token`
    writes. Millpond reads it again when it changes."""
    groups: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Groups of users: name of the group, and names of its users."""
    oidc: tuple[OIDCIssuer, ...] = ()
    """Issuers of ID tokens that clients may send as their password."""
    client_certificates: ClientCertificates | None = None
    networks: dict[str, tuple[str, ...]] = Field(default_factory=dict)
    """Names for networks, for use in `rules`."""
    trusted_proxies: tuple[str, ...] = ()
    """Addresses and networks of reverse proxies. Millpond accepts `X-Forwarded-For`, `Forwarded`,
    `X-Forwarded-Proto` and `X-Forwarded-Host` only from these."""
    rules: tuple[Rule, ...] = ()
    """The first rule that matches decides; if none matches, the request is denied. Without rules,
    every client that may connect may pull."""
    token_ttl: Annotated[Seconds, Field(ge=60, le=86400)] = 300.0
    """How long a token of `/-/token` is valid, at least 60 seconds."""
    audit_file: Path | None = None
    """File for the audit log, one JSON object per line. SIGHUP opens it again."""
    audit_max_size: Bytes | None = None
    """Size at which the audit log is renamed to `….1`."""
    limits: Limits = Limits()
    _has_callers: bool = PrivateAttr(default=False)

    def expect_callers(self) -> None:
        """Ask clients to log in, because an upstream is asked with their logins."""
        self._has_callers = True

    @property
    def is_configured(self) -> bool:
        """Clients are identified: there are users, networks, rules, or ``credentials: caller``."""
        return bool(
            not self.anonymous
            or self._has_callers
            or self.htpasswd_file
            or self.tokens_file
            or self.oidc
            or self.client_certificates
            or self.rules
        )

    @field_validator("trusted_proxies")
    @classmethod
    def _check_proxies(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for network in value:
            try:
                ip_network(network)
            except ValueError:
                raise ValueError(
                    f"{network!r} is no address or network; write 10.0.0.5 or 10.0.0.0/8"
                ) from None
        return value

    @field_validator("networks")
    @classmethod
    def _check_networks(cls, value: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        for name, networks in value.items():
            for network in networks:
                try:
                    ip_network(network)
                except ValueError:
                    raise ValueError(
                        f"{name}: {network!r} is no network; write 10.0.0.0/8"
                    ) from None
        return value
