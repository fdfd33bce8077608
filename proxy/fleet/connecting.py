"""Connects to the Redis of a fleet: a server, or the master that Sentinel names.

Each attempt takes ``CONNECT_SECONDS`` and ``ANSWER_SECONDS`` at most. The library's own limits are
seconds, with ten retries.
"""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from proxy.core.sentinels import SCHEMES, Login, Sentinels

if TYPE_CHECKING:
    from redis.asyncio import ConnectionPool, Redis

CONNECT_SECONDS: Final = 0.3
ANSWER_SECONDS: Final = 0.5
CONNECTIONS: Final = 16


class Connected(NamedTuple):
    """A client of Redis, and what closes its connections."""

    redis: "Redis"
    close: Callable[[], Awaitable[None]]


def client(url: str) -> Connected:
    """Return a client of the Redis at a URL. Nothing connects yet."""
    from redis import asyncio as redis  # noqa: PLC0415 - optional, and slow to import

    if url.startswith(SCHEMES):
        return _of_sentinels(Sentinels.parse(url))
    pool = redis.BlockingConnectionPool.from_url(
        url, max_connections=CONNECTIONS, timeout=ANSWER_SECONDS, **_limits(attempts=2)
    )
    return _over(pool)


def _of_sentinels(sentinels: Sentinels) -> Connected:
    """Return a client of the master that Sentinel names at the time of each connection."""
    from redis.asyncio.sentinel import Sentinel, SentinelConnectionPool  # noqa: PLC0415

    tls = {"ssl": sentinels.has_tls}
    sentinel = Sentinel(  # type: ignore[no-untyped-call]
        sentinels.hosts,
        sentinel_kwargs=_login(sentinels.sentinel_login) | _limits(attempts=1) | tls,
    )
    pool = SentinelConnectionPool(  # type: ignore[no-untyped-call]
        sentinels.master,
        sentinel,
        db=sentinels.database,
        max_connections=CONNECTIONS,
        **_login(sentinels.login),
        **_limits(attempts=2),
        **tls,
    )
    return _over(pool, sentinel.aclose)


def _over(pool: "ConnectionPool", *more: Callable[[], Awaitable[None]]) -> Connected:
    from redis import asyncio as redis  # noqa: PLC0415

    made = redis.Redis.from_pool(pool)

    async def close() -> None:
        await made.aclose()
        await pool.disconnect()
        for end in more:
            await end()

    return Connected(made, close)


def _limits(*, attempts: int) -> dict[str, Any]:
    from redis.asyncio.retry import Retry  # noqa: PLC0415
    from redis.backoff import NoBackoff  # noqa: PLC0415

    return {
        "socket_connect_timeout": CONNECT_SECONDS,
        "socket_timeout": ANSWER_SECONDS,
        "retry": Retry(NoBackoff(), attempts - 1),
        "protocol": 2,
        "driver_info": None,
    }


def _login(login: Login) -> dict[str, Any]:
    return {"username": login.username, "password": login.password}
