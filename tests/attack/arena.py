"""Runs one scenario against the real program, in a process of its own, and measures it.

Each scenario gets a fresh Millpond with an empty cache, in front of two registries: `docker.io` is
honest, `evil.test` is hostile. Before and after the attack an honest client pulls an image. A
scenario checks what it must; the limits below hold for all.
"""

import asyncio
import contextlib
import hashlib
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from tests.attack import probe
from tests.attack.hostile import Hostile
from tests.fakes.content import Image, image
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import REPOSITORY_ROOT, Millpond
from tests.parts.process import command, free_port, workdir

MOST_MEMORY: Final = 64 * 1024**2
"""Bytes that the process may grow by, at its peak."""
LONGEST_STALL: Final = 0.25
"""Seconds that `/-/healthz` may take, without what the machine is to blame for."""
HONEST_WITHIN: Final = 30.0
"""Seconds in which an honest client must have its image after the attack."""

EVIL: Final = "evil.test"
HONEST: Final = "team/honest"


@dataclass(frozen=True)
class Answer:
    """What a client got; `body` is what came, `whole` tells whether it ended as announced."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    whole: bool = True


@dataclass
class Arena:
    """What a scenario has at hand."""

    good: FakeUpstream
    evil: Hostile
    millpond: Millpond
    client: ClientSession
    honest: Image
    statuses: Counter[int] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    async def ask(self, path: str, method: str = "GET", **headers: str) -> Answer:
        """Send one request and read its answer whole, or as far as it comes: status 0 is none."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        status, got, body = 0, dict[str, str](), bytearray()
        try:
            async with self.client.request(method, path, headers=named) as answer:
                status, got = answer.status, dict(answer.headers)
                async for chunk in answer.content.iter_any():
                    body += chunk
        except (ClientError, OSError):
            self.statuses[status] += 1
            return Answer(status, got, bytes(body), whole=False)
        self.statuses[status] += 1
        return Answer(status, got, bytes(body))

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Open a bare connection to the program."""
        return await asyncio.open_connection("127.0.0.1", self.millpond.port)

    def check(self, holds: object, otherwise: str) -> None:
        """Note a fault, in plain words, unless something holds."""
        if not holds:
            self.faults.append(otherwise)

    async def restart(self) -> None:
        """Stop the program and start it on what it stored."""
        await asyncio.to_thread(self.millpond.restart)

    @property
    def disk_bytes(self) -> int:
        """What all files of the cache take on the disk, the index included."""
        files = (path for path in self.millpond.storage.rglob("*") if path.is_file())
        return sum(path.stat().st_blocks * 512 for path in files)


Attack = Callable[[Arena], Awaitable[None]]


@dataclass(frozen=True)
class Scenario:
    """An attack and the conditions under which it takes place."""

    name: str
    attack: Attack
    about: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    open_files: int | None = None
    """Hard limit of the process for open files; None leaves the system's."""
    within: float = 30.0
    """Seconds after which the attack counts as a hang."""
    restarts: bool = False
    """The attack restarts the program, so that its memory and stalls are not comparable."""
    evil_is_proxy: bool = False
    """The hostile registry is the HTTP proxy that leads to all names, so that it has a public one.

    Loopback is reached directly.
    """


@dataclass(frozen=True)
class Row:
    """What one scenario showed. Bytes and seconds; `faults` is empty if all is well."""

    name: str
    growth: int
    stall: float
    raw_stall: float
    seconds: float
    statuses: Counter[int]
    faults: list[str]


async def run(scenario: Scenario) -> Row:
    """Run one scenario to its end."""
    async with _prepared(scenario) as arena:
        faults = arena.faults
        await _pull_honestly(arena, "before the attack")
        pid = arena.millpond.pid
        before = probe.memory(pid)
        probe.reset_peak(pid)
        begun = time.monotonic()
        async with _probing(scenario, arena.millpond) as figures:
            try:
                async with asyncio.timeout(scenario.within):
                    await scenario.attack(arena)
            except TimeoutError:
                faults.append(f"hangs: no end after {scenario.within:g} s")
            except OSError as error:
                faults.append(f"cannot be reached: {error}")
        seconds = time.monotonic() - begun
        growth = 0
        if not scenario.restarts and arena.millpond.is_alive:
            growth = max(0, probe.peak_memory(pid) - before)
        await _pull_honestly(arena, "after the attack")
        _judge(arena, growth, figures)
        raw, stall = figures.get("raw", 0.0), figures.get("longest", 0.0)
        return Row(scenario.name, growth, stall, raw, seconds, arena.statuses, faults)


def _judge(arena: Arena, growth: int, figures: Mapping[str, float]) -> None:
    arena.check(arena.millpond.is_alive, f"has ended: {arena.millpond.log()[-2000:]}")
    arena.check(growth <= MOST_MEMORY, f"grows by {growth >> 20} MB")
    stall = figures.get("longest", 0.0)
    arena.check(stall <= LONGEST_STALL, f"stalls for {stall:.2f} s")
    arena.check(not figures.get("failed"), "/-/healthz did not answer 200 each time")
    arena.check(not arena.statuses[500], "answers 500")
    arena.check("Traceback" not in arena.millpond.log(), "logs a traceback")


@asynccontextmanager
async def _prepared(scenario: Scenario) -> AsyncIterator[Arena]:
    async with AsyncExitStack() as stack:
        root = stack.enter_context(workdir("attack"))
        good = await stack.enter_async_context(FakeUpstream())
        evil = await stack.enter_async_context(Hostile())
        honest = image("honest", (2_000, 300_000))
        good.add(HONEST, honest)
        millpond = Millpond(root, good.url, free_port(), _settings(scenario, evil))
        millpond.run_under(command("env"))  # its memory is measured: it starts in full
        if scenario.open_files is not None:
            limit = f"--nofile={scenario.open_files}:{scenario.open_files}"
            millpond.run_under(command("prlimit"), limit)
        if scenario.evil_is_proxy:
            names = (f"{name}={evil.url}" for name in ("HTTP_PROXY", "http_proxy"))
            millpond.run_under(command("env"), *names)
        await asyncio.to_thread(millpond.start)
        stack.callback(millpond.kill)
        session = ClientSession(
            millpond.url,
            connector=TCPConnector(limit=0),
            timeout=ClientTimeout(total=None),
            auto_decompress=False,
        )
        client = await stack.enter_async_context(session)
        yield Arena(good, evil, millpond, client, honest)


def _settings(scenario: Scenario, evil: Hostile) -> dict[str, Any]:
    settings = {
        "default_upstream": "docker.io",
        "timeouts": {"answer": "10s", "idle": "5s"},
        "patience": {"retries": 0, "failures": 1_000_000, "cool_down": 0},
        "shutdown_grace": "1s",
        **scenario.settings,
    }
    upstreams = dict(settings.pop("upstreams", {}))
    upstreams[EVIL] = {"url": evil.url} | upstreams.get(EVIL, {})
    filled = json.loads(json.dumps(upstreams).replace("EVIL_PORT", str(evil.port)))
    return {**settings, "upstreams": filled}


@asynccontextmanager
async def _probing(scenario: Scenario, millpond: Millpond) -> AsyncIterator[dict[str, float]]:
    """Probe meanwhile; what is given is filled when all is over."""
    figures: dict[str, float] = {}
    if scenario.restarts:
        yield figures
        return
    words = ["-m", "tests.attack.probe", str(millpond.port), str(millpond.pid)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *words, cwd=REPOSITORY_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        await process.stdout.readline()
        yield figures
        process.stdin.close()
        figures |= json.loads(await process.stdout.read())
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _pull_honestly(arena: Arena, moment: str) -> None:
    """Pull the honest image as a client does, and compare every byte."""
    counted, arena.statuses = arena.statuses, Counter()
    try:
        async with asyncio.timeout(HONEST_WITHIN):
            manifest = await arena.ask(f"/v2/{HONEST}/manifests/latest")
            arena.check(manifest.body == arena.honest.manifest, f"wrong manifest {moment}")
            for digest, data in arena.honest.blobs.items():
                blob = await arena.ask(f"/v2/{HONEST}/blobs/{digest}")
                arena.check(blob.body == data, f"wrong blob {moment} (status {blob.status})")
    except TimeoutError:
        arena.check(None, f"an honest client waits in vain {moment}")
    arena.statuses = counted


def sha256(data: bytes) -> str:
    """Return the digest of bytes."""
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
