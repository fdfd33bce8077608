"""Reads the address of a Redis whose master Sentinel names.

``redis+sentinel://user:password@host:26379,host/master/0``, or ``rediss+sentinel://`` for TLS. User
and password are those of Redis; ``?sentinel_username=…&sentinel_password=…`` are those of Sentinel.
"""

from typing import Final, NamedTuple, Self
from urllib.parse import parse_qs, unquote, urlsplit

SCHEMES: Final = ("redis+sentinel", "rediss+sentinel")
PORT: Final = 26379
MAX_HOSTS: Final = 5
_PARAMETERS: Final = {"sentinel_username", "sentinel_password"}


class Login(NamedTuple):
    """``None``: not needed."""

    username: str | None
    password: str | None

    def __repr__(self) -> str:
        return "<Login>"


class Sentinels(NamedTuple):
    """Sentinels as host and port, and the master and its database that they lead to."""

    hosts: tuple[tuple[str, int], ...]
    master: str
    database: int
    login: Login
    sentinel_login: Login
    has_tls: bool

    @classmethod
    def parse(cls, url: str) -> Self:
        """Return what a URL says. Raises ``ValueError`` without a part of the URL."""
        scheme, _, rest = url.partition("://")
        user, _, hosts = rest.partition("/")[0].rpartition("@")
        try:
            read = urlsplit(f"//{user}@x/{rest.partition('/')[2]}")
            found = tuple(_host(one) for one in hosts.split(","))
            master, _, database = read.path.strip("/").partition("/")
            number = int(database or 0)
            query = parse_qs(read.query, strict_parsing=True) if read.query else {}
        except ValueError:
            raise ValueError("not the address of sentinels") from None
        is_known = scheme in SCHEMES and query.keys() <= _PARAMETERS and not read.fragment
        if not is_known or not master or number < 0 or len(found) > MAX_HOSTS:
            raise ValueError("not the address of sentinels")
        values = {name: value[0] for name, value in query.items()}
        return cls(
            found,
            unquote(master),
            number,
            Login(_plain(read.username), _plain(read.password)),
            Login(values.get("sentinel_username"), values.get("sentinel_password")),
            scheme == SCHEMES[1],
        )


def _host(text: str) -> tuple[str, int]:
    read = urlsplit(f"//{text}")
    if not read.hostname or read.port == 0 or read.netloc != text:
        raise ValueError
    return read.hostname, read.port or PORT


def _plain(text: str | None) -> str | None:
    return unquote(text) if text else None
