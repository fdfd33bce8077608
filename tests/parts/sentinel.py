"""A real Redis Sentinel with a master and a replica of it."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from redis import Redis as Client

from tests.parts.process import Daemon, command, free_port, hermetic, listens, workdir
from tests.parts.redis import Redis

NAME = "mymaster"
PASSWORD = "of-the-master"
CONFIGURATION = f"""
sentinel monitor {NAME} 127.0.0.1 {{port}} 1
sentinel auth-pass {NAME} {PASSWORD}
sentinel down-after-milliseconds {NAME} 1000
sentinel failover-timeout {NAME} 3000
"""


@dataclass(frozen=True)
class Watched:
    """`second` takes the place of `first` when that is killed."""

    first: Redis
    second: Redis
    url: str


@contextmanager
def running() -> Iterator[Watched]:
    """Give a master that a sentinel watches, once the sentinel knows its replica."""
    with ExitStack() as stack:
        login = ["--requirepass", PASSWORD, "--masterauth", PASSWORD]
        first = _started(stack, login)
        second = _started(stack, [*login, "--replicaof", "127.0.0.1", str(first.port)])
        _wait(lambda: _connected(second))
        root, port = stack.enter_context(workdir("sentinel")), free_port()
        configuration = root / "sentinel.conf"
        configuration.write_text(CONFIGURATION.format(port=first.port))
        argv = [command("redis-server"), str(configuration), "--sentinel", "--port", str(port)]
        argv += ["--bind", "127.0.0.1", "--dir", str(root)]
        sentinel = Daemon(argv, hermetic(root), root / "sentinel.log")
        sentinel.start(lambda: listens(port, "127.0.0.1"))
        stack.callback(sentinel.kill)
        with Client(port=port, protocol=2) as client:
            _wait(lambda: len(client.execute_command("SENTINEL", "REPLICAS", NAME)) == 1)
        nowhere = free_port()
        hosts = f"127.0.0.1:{nowhere},127.0.0.1:{port}"
        yield Watched(first, second, f"redis+sentinel://:{PASSWORD}@{hosts}/{NAME}/0")


def _started(stack: ExitStack, options: list[str]) -> Redis:
    redis = Redis(stack.enter_context(workdir("redis")), options=options)
    redis.url = f"redis://:{PASSWORD}@127.0.0.1:{redis.port}/0"
    redis.start()
    stack.callback(redis.close)
    return redis


def _connected(redis: Redis) -> bool:
    with redis.client() as client:
        return client.info("replication").get("master_link_status") == "up"


def _wait(condition) -> None:  # type: ignore[no-untyped-def]
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)
