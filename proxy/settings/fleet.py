"""Settings for several Millponds that share a Redis."""

import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SecretStr

from proxy.settings.units import Section

_REDIS: Final = ("redis", "rediss", "unix")


def _redis_url(value: SecretStr) -> SecretStr:
    """Return the URL if redis-py accepts it. The error names no part of it: it may be secret."""
    try:
        url = urlsplit(value.get_secret_value())
        has_address = bool(url.path if url.scheme == "unix" else url.hostname)
        is_complete = has_address and url.port != 0
    except ValueError:
        is_complete = False
    if not is_complete or url.scheme not in _REDIS:
        raise ValueError(
            "not the address of a Redis; write redis://redis.example:6379/0, "
            "rediss://:password@redis.example:6380/0 or unix:///run/redis/redis.sock"
        )
    return value


def _own_url(value: str) -> str:
    """Return the base URL without a final slash. Raises ``ValueError``."""
    try:
        url = urlsplit(value)
        is_base = bool(url.hostname) and url.path in {"", "/"} and url.port != 0
    except ValueError:
        is_base = False
    extras = re.search(r"[?#@\s]", value)
    if not is_base or extras or url.scheme not in {"http", "https"}:
        raise ValueError("not the address of a Millpond; write http://10.1.2.3:5000")
    return value.rstrip("/")


class Fleet(Section):
    """Other Millponds with which this one shares downloads and facts."""

    redis: Annotated[SecretStr, AfterValidator(_redis_url)] | None = None
    """Redis or Valkey that all replicas use: `redis://`, `rediss://` or `unix://`. It may lose all
    its data at any time."""
    secret_file: Path | None = None
    """File with a secret with which replicas authenticate each other. Without it they exchange no
    content."""
    advertise: Annotated[str, AfterValidator(_own_url)] | None = None
    """Address at which the other replicas reach this one, such as `http://10.1.2.3:5000`. Without
    it, the address of the route to Redis with the port of `listen`."""
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")] = "default"
    """Name of the fleet. Fleets with different names may share one Redis."""
