"""Three real replicas, Redis, SeaweedFS and twelve clients, beside what the model says of them.

Every machine is a network namespace whose link is slow enough that the CPUs of this machine
matter little: the model is about links and about who asks whom how often.
"""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.request import urlopen

import yaml

from benchmarks import fleet_network, link
from benchmarks.fleet_outcome import Outcome
from benchmarks.fleet_scenarios import Fleet
from benchmarks.fleet_site import GBIT, TRANSFERS, Protocol, Site
from benchmarks.link import Link
from benchmarks.pull import Connection, pull
from benchmarks.upstream import ACCEPT, Content, Registry, Settings
from tests.parts.images import OCI
from tests.parts.process import Daemon, free_port, hermetic, wait_until, workdir
from tests.parts.push import Recipe, push_image, random_layer

ROOT: Final = Path(__file__).resolve().parents[1]
UPLINK, CABLE, OPEN = 100, 160, 10_000  # megabits a second
PAYLOAD: Final = 1448 / 1514
"""Bytes of a body in a frame of Ethernet: the rest is TCP, IP and Ethernet (RFC 9293, RFC 7323)."""
REPLICAS, CLIENTS = 3, 12
CONFIG: Final = 600
"""About as many bytes has a configuration. Content of this size is not uploaded."""
LAYERS: Final = (30_000_000, 15_000_000, 10_000_000, 5_000_000)
TOLERANCE: Final = 0.15
_PRIORITY: Final = -10
"""Before the other programs of this machine: how busy it is is not the question."""
_BEATS: Final = {"hset", "expire", "hgetall"}
_AFTER_A_START: Final = {"zremrangebyrank"}
"""A replica does it once, seconds after its start."""
_KEYS: Final = {"AWS_ACCESS_KEY_ID": "check", "AWS_SECRET_ACCESS_KEY": "a-secret-of-the-check"}


@dataclass(frozen=True, slots=True)
class Seen:
    """What really happened. ``downloaders`` names the replica that fetched each layer."""

    seconds: float
    bodies: float
    bucket: Counter[str]
    redis_commands: Counter[str]
    counted_for: float
    """Seconds in which these commands were sent."""
    downloaders: dict[int, int]


def main() -> int:
    """Print both and the ratio of each; return 1 if one is off by more than the tolerance."""
    if reason := link.why_not():
        sys.stderr.write(f"{reason}\n")
        return 2
    os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)  # inherited by all that is started
    seen = measured()
    said = predicted(seen.downloaders)
    print("| | model | three replicas | ratio |")
    print("|---|---:|---:|---:|")
    worst = 0.0
    commands, protocol = seen.redis_commands, Protocol()
    of_replicas = REPLICAS * seen.counted_for
    upkeep = protocol.upkeep(has_bucket=True) * of_replicas
    beats = sum(commands[name] for name in _BEATS)
    others = commands.total() - beats - sum(commands[name] for name in _AFTER_A_START)
    for name, expected, real in (
        ("seconds to the last client", said.seconds, seen.seconds),
        ("bodies from the registry, per layer", said.bodies_per_digest, seen.bodies),
        # Millpond counts an upload in parts as one request.
        ("bucket requests", said.heads + said.gets + len(LAYERS), seen.bucket.total()),
        (
            "Redis commands, without renewals and signs of life",
            said.redis_commands - said.renewals + upkeep,
            others - commands["renew"],
        ),
        ("signs of life", protocol.beats(REPLICAS) * of_replicas, beats),
    ):
        ratio = real / expected
        worst = max(worst, abs(ratio - 1))
        print(f"| {name} | {expected:,.2f} | {real:,.2f} | {ratio:.2f} |")
    # They depend on how long single downloads take. A replica begins all layers of an image at
    # once, TCP shares a link less fairly, and a busy machine renews a lease later.
    print(f"| renewals of leases | {said.renewals:.0f} | {commands['renew']} | |")
    print(f"\nRunnable processes, minute by minute: {os.getloadavg()}")
    print(f"Commands in {seen.counted_for:.0f} s: {dict(commands)}")
    print(f"Requests to the bucket: {dict(seen.bucket)}")
    return int(worst > TOLERANCE)


def predicted(downloaders: dict[int, int]) -> Outcome:
    """Return what the model says of the same."""
    site = Site(
        uplink=UPLINK * PAYLOAD * GBIT / 1000,
        registry_stream=OPEN * GBIT / 1000,
        node_link=OPEN * GBIT / 1000,
        replica_link=CABLE * PAYLOAD * GBIT / 1000,
        spread=0.0,
    )
    rollout = Fleet(site, CLIENTS, REPLICAS, tuple(map(float, (CONFIG, *LAYERS))))
    rollout.manifests_of_image = 1
    rollout.downloaders = {number + 1: replica for number, replica in downloaders.items()}
    return rollout.play()


def measured() -> Seen:
    """Return what three replicas do."""
    rates = {"registry": UPLINK} | {f"replica {n}": CABLE for n in range(REPLICAS)}
    with workdir("fleet") as root, fleet_network.running(rates) as (here, machines):
        content = root / "content"
        image = _pushed(root, content)
        far = machines["registry"]
        registry = Registry(
            _folder(root, "registry"), content, Settings(f"{far.address}:5000", far.prefix)
        )
        with ExitStack() as stack:
            stack.enter_context(registry.running())
            redis = stack.enter_context(_redis(_folder(root, "redis"), here))
            bucket = stack.enter_context(_bucket(_folder(root, "bucket"), here))
            secret = root / "secret"
            secret.write_text("the-secret-of-all-three-replicas-of-the-check\n")
            shared = {
                "fleet": {"redis": f"redis://{redis}/0", "secret_file": str(secret)},
                "bucket": {"url": "s3://check/fleet", "endpoint": bucket, "region": "us-east-1"},
            }
            names = [f"replica {number}" for number in range(REPLICAS)]
            addresses = [
                stack.enter_context(
                    _replica(_folder(root, name), machines[name], registry.url, shared)
                )
                for name in names
            ]
            return _pulled(image, addresses, root / "registry" / "registry.out")


def _pulled(image: Any, addresses: Sequence[str], log: Path) -> Seen:
    before, begin = _commands(addresses), time.monotonic()
    with ThreadPoolExecutor(CLIENTS) as clients:
        ends = list(clients.map(lambda n: _client(addresses[n % REPLICAS], image), range(CLIENTS)))
    seconds = max(ends) - begin
    _settled(addresses)
    commands, counted_for = _commands(addresses) - before, time.monotonic() - begin
    sent: Counter[str] = Counter()
    downloaders = {}
    hosts = [address.rpartition(":")[0] for address in addresses]
    numbers = {layer.digest: number for number, layer in enumerate(image.layers)}
    for line in log.read_text().splitlines():
        found = re.match(r'(\S+) .*"GET /v2/\S+/blobs/(\S+) HTTP/1.1" 20[06] (\d+)', line)
        if found and found[2] in numbers:
            sent[found[2]] += int(found[3])
            downloaders[numbers[found[2]]] = hosts.index(found[1])
    bodies = sum(sent.values()) / sum(LAYERS)
    bucket = _bucket_requests(addresses)
    return Seen(seconds, bodies, bucket, commands, counted_for, downloaders)


def _client(address: str, image: Any) -> float:
    """Pull as containerd does: the manifest, then three layers at a time; return the end."""
    url = f"http://{address}"
    with Connection(url) as connection:
        manifest = json.loads(connection.get("/v2/library/check/manifests/latest", **ACCEPT))
    parts = [manifest["config"], *manifest["layers"]]
    with ThreadPoolExecutor(TRANSFERS) as transfers:
        paths = [f"/v2/library/check/blobs/{part['digest']}" for part in parts]
        pulls = list(transfers.map(lambda path: pull(url, path), paths))
    assert [one.size for one in pulls] == [part["size"] for part in parts]
    return time.monotonic()


def _pushed(root: Path, content: Path) -> Any:
    """Push the image to a registry without a slow link."""
    with Registry(_folder(root, "push"), content, Settings()).running() as registry:
        pusher = Content(registry)._pusher  # noqa: SLF001 - the same login
        layers = [random_layer(f"fleet {size}", size) for size in LAYERS]
        return push_image(pusher, "library/check", "latest", Recipe(OCI, layers))


@contextmanager
def _replica(root: Path, machine: Link, upstream: str, shared: dict[str, Any]) -> Iterator[str]:
    """Give the address of a running replica."""
    address = f"{machine.address}:5000"
    settings = {
        "listen": address,
        "storage": {"path": str(root / "cache"), "bucket": shared["bucket"]},
        "fleet": {**shared["fleet"], "advertise": f"http://{address}"},
        "upstreams": {"docker.io": {"url": upstream, "library_prefix": True}},
        "shutdown_grace": "1s",
        "log": {"format": "json"},
    }
    config = root / "config.yaml"
    config.write_text(yaml.safe_dump(settings))
    argv = [*machine.prefix, sys.executable, "-m", "proxy", "serve", "-c", str(config)]
    daemon = Daemon(argv, _environment(root, PYTHONPATH=str(ROOT), **_KEYS), root / "log")
    daemon.cwd = ROOT
    with _running(daemon, machine.address, 5000):
        yield address


@contextmanager
def _redis(root: Path, host: str) -> Iterator[str]:
    port = free_port()
    argv = ["redis-server", "--bind", host, "--port", str(port), "--protected-mode", "no"]
    daemon = Daemon([*argv, "--save", "", "--dir", str(root)], hermetic(root), root / "log")
    with _running(daemon, host, port):
        yield f"{host}:{port}"


@contextmanager
def _bucket(root: Path, host: str) -> Iterator[str]:
    """Give the URL of a SeaweedFS with a bucket."""
    port = free_port()
    options: dict[str, object] = {"dir": root, "ip": host, "ip.bind": host, "s3.port": port}
    for server in ("master", "volume", "filer"):
        options |= {f"{server}.port": free_port(), f"{server}.port.grpc": free_port()}
    options |= {"s3.port.grpc": free_port(), "s3.port.iceberg": 0, "s3.port.lance": 0}
    options |= {"master.telemetry": "false", "volume.preStopSeconds": 0}
    weed = str(Path(sys.executable).with_name("weed"))
    argv = [
        weed,
        "server",
        "-filer",
        "-s3",
        *(f"-{name}={value}" for name, value in options.items()),
    ]
    daemon = Daemon(argv, _environment(root, GOMEMLIMIT="1GiB", **_KEYS), root / "log")
    daemon.cwd = root
    url = f"http://{host}:{port}"
    with _running(daemon, host, port):
        made = [
            weed,
            "shell",
            f"-master={host}:{options['master.port']}.{options['master.port.grpc']}",
        ]
        command = b"s3.bucket.create -name check\n"
        subprocess.run(made, input=command, check=True, capture_output=True, cwd=root, timeout=60)
        yield url


@contextmanager
def _running(daemon: Daemon, host: str, port: int) -> Iterator[None]:
    def listens() -> bool:
        try:
            socket.create_connection((host, port), timeout=1).close()
        except OSError:
            return False
        return True

    daemon.start(listens, within=60)
    try:
        yield
    finally:
        daemon.stop(within=8)


def _environment(root: Path, **more: str) -> dict[str, str]:
    """Return an environment without a proxy: the machines are not on loopback."""
    found = hermetic(root, **more)
    return {name: value for name, value in found.items() if "_proxy" not in name.lower()}


def _commands(addresses: Sequence[str]) -> Counter[str]:
    """Return how many commands the replicas have sent to Redis.

    Redis itself also counts those that a script runs inside.
    """
    return _counted(addresses, "millpond_fleet_redis_commands_total", "command")


def _bucket_requests(addresses: Sequence[str]) -> Counter[str]:
    """Return how many requests the replicas have sent to the bucket."""
    return _counted(addresses, "millpond_bucket_requests_total", "operation")


def _counted(addresses: Sequence[str], metric: str, label: str) -> Counter[str]:
    total: Counter[str] = Counter()
    for address in addresses:
        with urlopen(f"http://{address}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        for name, number in re.findall(rf'^{metric}{{{label}="(\w+)"}} (\S+)', text, re.MULTILINE):
            total[name] += int(float(number))
    return total


def _settled(addresses: Sequence[str]) -> None:
    """Return when the uploads have ended: the number of requests to the bucket stays the same."""
    seen = [-1, -2, -3]

    def is_quiet() -> bool:
        time.sleep(1)
        seen[:] = [*seen[1:], _bucket_requests(addresses).total()]
        return len(set(seen)) == 1

    wait_until(is_quiet, "the uploads to end", within=60)


def _folder(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    return folder
