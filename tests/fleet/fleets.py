"""Three real Millponds that share a real Redis, and clients that hash all that they get."""

import asyncio
import hashlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientSession, ClientTimeout

from tests.parts import redis as redises
from tests.parts.millpond import Millpond
from tests.parts.process import free_port, workdir
from tests.parts.redis import Redis

SKEWED = Path(__file__).with_name("skewed.py")
SECRET = "0123456789abcdef0123456789abcdef"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Fleet:
    redis: Redis
    replicas: list[Millpond]

    def __getitem__(self, index: int) -> Millpond:
        return self.replicas[index]

    def others(self, index: int) -> list[Millpond]:
        return [one for place, one in enumerate(self.replicas) if place != index]


@contextmanager
def running(
    upstream: str, clocks: Sequence[float] = (0, 0, 0), extra: Mapping[str, Any] | None = None
) -> Iterator[Fleet]:
    """Give replicas with empty caches before `upstream`, a base URL.

    `clocks` says by how many seconds the clock of each is wrong.
    """
    with ExitStack() as stack:
        redis = stack.enter_context(redises.running())
        replicas = []
        for seconds in clocks:
            root = stack.enter_context(workdir("replica"))
            secret = root / "secret"
            secret.write_text(SECRET)
            fleet = {"redis": redis.url, "secret_file": str(secret)}
            settings = {
                "fleet": fleet,
                "prefetch": {"blobs": 0},
                "patience": {"retries": 0, "resumes": 0},
                "storage": {"min_free": 0},
                "shutdown_grace": "5s",
                "log": {"level": "debug"},
                **(extra or {}),
            }
            replica = Millpond(root, upstream, free_port(), settings, _under(seconds))
            stack.callback(_end, replica)
            replicas.append(replica)
        with ThreadPoolExecutor() as pool:
            list(pool.map(Millpond.start, replicas))
        yield Fleet(redis, replicas)


def _under(seconds: float) -> list[str]:
    """Return the command under which a clock is wrong."""
    return [sys.executable, str(SKEWED), str(seconds)] if seconds else []


def _end(replica: Millpond) -> None:
    """End a replica in whatever state it is."""
    if replica.is_alive:
        replica.signal(signal.SIGCONT)
        replica.stop(20)


class Broken(Exception):
    """A client did not get all of a body."""


async def fetch(session: ClientSession, url: str, path: str) -> bytes:
    """Return a body, proven by its digest if the path ends in one. Raises `Broken`."""
    headers = {"Accept": MANIFEST}
    try:
        async with session.get(f"{url}/v2/{path}", headers=headers) as response:
            body = await response.read()
            if response.status != 200:
                raise Broken(f"{response.status} {body[:200]!r}")
    except (ClientError, TimeoutError) as error:
        raise Broken(repr(error)) from error
    algorithm, _, wanted = path.rpartition("/")[2].partition(":")
    if wanted and hashlib.new(algorithm, body).hexdigest() != wanted:
        raise AssertionError(f"wrong bytes for {path}")
    return body


async def fetch_retrying(session: ClientSession, urls: list[str], path: str) -> bytes:
    """Return a body as through a load balancer that retries once on another replica."""
    try:
        return await fetch(session, urls[0], path)
    except Broken:
        return await fetch(session, urls[1 % len(urls)], path)


def client() -> ClientSession:
    return ClientSession(timeout=ClientTimeout(total=60))


async def in_loop(work: Any, *arguments: Any) -> Any:
    """Do blocking work in a thread, so that the fake registry goes on."""
    return await asyncio.to_thread(work, *arguments)
