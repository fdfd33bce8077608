"""The Millpond that clients are set up for: its address, its registries, and its login."""

import base64
import json
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Final

from yarl import URL

from proxy.core.errors import ConfigError
from proxy.settings import Settings

DOCKER_HUB: Final = "docker.io"
_DEFAULT_PORTS: Final = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry that Millpond pulls from: its name in images, and its names at Millpond."""

    name: str
    hostnames: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()

    @property
    def server(self) -> str:
        """The URL under which clients reach the registry itself."""
        host = "registry-1.docker.io" if self.name == DOCKER_HUB else self.name
        return f"https://{host}"


@dataclass(frozen=True, slots=True)
class Login:
    """A user of Millpond, or an access token with any user name."""

    user: str
    password: str

    @property
    def basic(self) -> str:
        """The credentials as in a ``Basic`` header (RFC 7617)."""
        return base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def __repr__(self) -> str:
        return f"<Login of {self.user}>"


@dataclass(frozen=True, slots=True)
class Instance:
    """One Millpond, as clients see it. ``ca`` is PEM text."""

    url: URL
    registries: tuple[Registry, ...]
    default: str = DOCKER_HUB
    ca: str | None = None
    login: Login | None = None
    asks_for_login: bool = False

    @property
    def address(self) -> str:
        """The URL as clients write it, ``http://127.0.0.1:5000``."""
        return f"{self.url.scheme}://{self.host}"

    @property
    def host(self) -> str:
        """Host and port as in names of images; a default port is left out."""
        host = f"[{self.url.host}]" if ":" in (self.url.host or "") else self.url.host or ""
        port = self.url.explicit_port
        return host if port in (None, _DEFAULT_PORTS[self.url.scheme]) else f"{host}:{port}"

    @property
    def is_plain(self) -> bool:
        """Millpond speaks HTTP without TLS here."""
        return self.url.scheme == "http"

    @property
    def is_loopback(self) -> bool:
        """The address is on the client's own machine."""
        try:
            return ip_address(self.url.host or "").is_loopback
        except ValueError:
            return self.url.host == "localhost"

    @property
    def mirrors_docker_hub(self) -> bool:
        """The registries to mirror include Docker Hub."""
        return any(registry.name == DOCKER_HUB for registry in self.registries)

    def hidden(self, text: str) -> str:
        """Return a text without the password."""
        if self.login is None:
            return text
        quoted = json.dumps(self.login.password)[1:-1]
        for secret in (self.login.basic, quoted, self.login.password):
            text = text.replace(secret, "***")
        return text


def parse_address(text: str) -> URL:
    """Return the URL of ``--address``. Raises ``ConfigError``."""
    try:
        url = URL(text)
    except ValueError:
        url = URL()
    if url.scheme not in _DEFAULT_PORTS or not url.host:
        raise ConfigError("--address: not an address; write https://cache.example.com")
    if url.path != "/" or url.query_string or url.fragment or url.user or url.password:
        raise ConfigError("--address: takes scheme, host and port only")
    return url


def own_address(settings: Settings) -> URL:
    """Return the address that the settings give, for clients on this machine.

    Raises ``ConfigError`` if the settings do not say under which address clients reach Millpond.
    """
    scheme, host, port = "https" if settings.tls else "http", settings.host, settings.port
    if port == 0:
        raise ConfigError("the settings name no port; give --address URL")
    if host in ("0.0.0.0", "::"):  # noqa: S104 - it is recognised, nothing binds it
        if settings.tls:
            raise ConfigError(
                "the certificate of Millpond has a name that the settings do not have; "
                "give --address https://NAME"
            )
        host = "127.0.0.1"
    return URL.build(scheme=scheme, host=host, port=port)


def configured(settings: Settings) -> tuple[Registry, ...]:
    """Return the registries of the settings."""
    return tuple(
        Registry(name, upstream.hostnames, upstream.aliases)
        for name, upstream in settings.upstreams.items()
    )


def chosen(known: tuple[Registry, ...], names: tuple[str, ...]) -> tuple[Registry, ...]:
    """Return the registries with these names, or all without names. Raises ``ConfigError``."""
    by_name = {registry.name: registry for registry in known}
    for name in names:
        if name not in by_name:
            listed = ", ".join(by_name)
            raise ConfigError(f"--upstream: {name} is not configured; there are {listed}")
    return tuple(by_name[name] for name in names) if names else known
