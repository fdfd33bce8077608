"""Three replicas, Redis, SeaweedFS and nginx, each on a machine of its own, as in `deploy/fleet`."""

import asyncio
import shutil
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import yaml

from tests.fleet.chaos import machines
from tests.fleet.chaos.clock import Skew
from tests.fleet.chaos.machines import HERE, Machine
from tests.parts import nginx, seaweed
from tests.parts.millpond import REPOSITORY_ROOT, Millpond, merged
from tests.parts.mounts import tmpfs
from tests.parts.nginx import Nginx
from tests.parts.process import workdir
from tests.parts.redis import Redis
from tests.parts.seaweed import Server

DEPLOYED: Final = REPOSITORY_ROOT / "deploy" / "fleet"
ADDRESSES: Final = {
    "redis": "172.30.5.2",
    "bucket": "172.30.5.3",
    "1": "172.30.5.11",
    "2": "172.30.5.12",
    "3": "172.30.5.13",
}
DISK_SIZE: Final = 400 * 1024**2
_CLOCK: Final = Path(__file__).with_name("clock.py")
_PYTHON: Final = sys.executable


@dataclass(frozen=True)
class Replica:
    """One Millpond, its machine, its disk and its clock."""

    name: str
    machine: Machine
    millpond: Millpond
    skew: Skew

    @property
    def address(self) -> str:
        """HOST:PORT."""
        return self.millpond.address

    async def kill(self) -> None:
        """End it by SIGKILL."""
        await asyncio.to_thread(self.millpond.kill)

    async def start(self) -> None:
        """Start it on what it has stored; return when it is ready."""
        await asyncio.to_thread(self.millpond.start)

    async def wipe(self) -> None:
        """Empty its disk. It must not run."""
        for each in self.millpond.storage.iterdir():
            remove = shutil.rmtree if each.is_dir() else partial(Path.unlink, missing_ok=True)
            await asyncio.to_thread(remove, each)

    def end(self) -> None:
        """End it in whatever state it is."""
        if self.millpond.is_alive:
            self.millpond.signal(signal.SIGCONT)
            self.millpond.kill()


@dataclass(frozen=True)
class Site:
    """Everything that can break."""

    replicas: list[Replica]
    redis: Redis
    bucket: Server
    front: Nginx

    def of(self, address: str) -> Replica:
        """Return the replica at HOST:PORT."""
        return next(each for each in self.replicas if each.address == address)

    def others(self, replica: Replica) -> list[str]:
        """Return the hosts of the other replicas."""
        return [each.machine.address for each in self.replicas if each is not replica]

    def keep_logs(self, folder: Path) -> None:
        """Copy what the replicas and nginx have written."""
        folder.mkdir(parents=True, exist_ok=True)
        for each in self.replicas:
            shutil.copy(each.millpond.config.with_name("millpond.log"), folder / f"{each.name}.log")
        (folder / "nginx.log").write_text("\n".join(self.front.requests()))


@contextmanager
def running(upstream: str) -> Iterator[Site]:
    """Give a site with empty caches before `upstream`, a base URL."""
    with ExitStack() as stack:
        root = stack.enter_context(workdir("chaos"))
        at = stack.enter_context(machines.running(ADDRESSES))
        redis = Redis(_folder(root, "redis"), at["redis"].address, at["redis"].under)
        stack.callback(redis.close)
        redis.start()
        machine = at["bucket"]
        bucket = stack.enter_context(
            seaweed.running(_folder(root, "bucket"), machine.address, machine.under)
        )
        settings = _settings(root, redis, bucket)
        replicas = []
        for name in ("1", "2", "3"):
            folder = _folder(root, name)
            stack.enter_context(tmpfs(folder / "storage", DISK_SIZE))
            replicas.append(_replica(folder, at[name], upstream, settings))
            stack.callback(replicas[-1].end)
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda each: each.millpond.start(), replicas))
        front = stack.enter_context(nginx.running(DEPLOYED / "nginx.conf", _NGINX))
        yield Site(replicas, redis, bucket, front)


_HOST: Final = "proxy_set_header Host $http_host;"
_NGINX: Final = {_HOST: f"{_HOST} add_header X-Replica $upstream_addr always;"}


def _settings(root: Path, redis: Redis, bucket: Server) -> dict[str, Any]:
    """Return the settings of `deploy/fleet`, with these addresses, and tags that are soon due."""
    deployed = yaml.safe_load((DEPLOYED / "millpond.yaml").read_text())
    assert deployed["access"]["trusted_proxies"] == [HERE]
    secret = root / "secret"
    secret.write_text("0123456789abcdef0123456789abcdef")
    changes = {
        "storage": {
            "max_size": "300MiB",
            "min_free": 0,
            "bucket": bucket.bucket("fleet").settings(),
        },
        "fleet": {"redis": redis.url, "secret_file": str(secret)},
        "freshness": {"tag_ttl": "2s", "stale_while_revalidate": 0},
        "log": {"level": "debug"},
    }
    del deployed["storage"]["path"]
    both = merged(deployed, changes)
    both["storage"]["bucket"].pop("max_size", None)
    return both


def _replica(root: Path, machine: Machine, upstream: str, settings: dict[str, Any]) -> Replica:
    skew = Skew(root / "clock")
    under = [*machine.under, _PYTHON, str(_CLOCK), str(skew.file)]
    extra = settings | {"listen": f"{machine.address}:5000"}
    millpond = Millpond(root, upstream, 5000, extra, under)
    return Replica(root.name, machine, millpond, skew)


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    return folder
