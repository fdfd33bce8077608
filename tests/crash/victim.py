"""The process that is killed: `python -m proxy serve`, on one directory and one port for ever."""

import asyncio
import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector

from tests.parts.millpond import merged
from tests.parts.mounts import Disk
from tests.parts.process import NO_AUTHORITIES, free_port, hermetic

START_WITHIN: Final = 60.0
"""Seconds that a start may take before it counts as none; far more than any machine needs."""
SECOND_WITHIN: Final = 20.0
"""Seconds within which a second process has to give up."""

_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1

_SETTINGS: Final[Mapping[str, Any]] = {
    "shutdown_grace": "1s",
    "freshness": {"tag_ttl": "500ms", "stale_while_revalidate": "500ms"},
    "patience": {"failures": 1_000_000, "pause": 0, "cool_down": 0},
    "log": {"format": "json", "level": "warning"},
}


class Victim:
    """One proxy after another over the same storage."""

    def __init__(
        self, root: Path, tree: Path, upstream: str, settings: Mapping[str, Any], power: Disk | None
    ) -> None:
        """Prepare; `tree` is where `proxy/` lies, `settings` go over the usual ones.

        `power` is the disk that dies with the process, if one does.
        """
        self.storage = storage = Path(settings["storage"]["path"])
        self.address = f"127.0.0.1:{free_port()}"
        self.url = f"http://{self.address}"
        self.socket = storage / "admin.sock"
        self.log = root / "victim.log"
        document = {
            "listen": self.address,
            "upstreams": {"docker.io": {"url": upstream, "library_prefix": True}},
        }
        config = root / "millpond.yaml"
        config.write_text(yaml.safe_dump(merged(merged(document, _SETTINGS), settings)))
        self._argv = [sys.executable, "-m", "proxy", "serve", "-c", str(config)]
        self._env = hermetic(root, PYTHONPATH=str(tree), **NO_AUTHORITIES)
        self._tree = tree
        self._power = power
        self.is_cut = False
        """Whether its disk is dead: what is seen of it then tells nothing."""
        self._process: subprocess.Popen[bytes] | None = None
        self._restoring: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start the process, waiting for nothing."""
        assert self._process is None or self._process.poll() is not None
        self._process = self._spawn()

    async def answers(self) -> float:
        """Return, once it answers, the seconds that it took; fail when it ends before that."""
        begun = time.monotonic()
        async with asyncio.timeout(START_WITHIN), self.client() as client:
            while not await _is_well(client):
                assert self.is_alive, f"it ended while starting:\n{self.tail()}"
                await asyncio.sleep(0.01)
        return time.monotonic() - begun

    async def second(self) -> tuple[int, str]:
        """Run another one on the same directory; return its exit status and what it said."""
        with self._spawn("--listen", "127.0.0.1:0", stderr=subprocess.PIPE) as second:
            try:
                said = (await asyncio.to_thread(second.communicate, None, SECOND_WITHIN))[1]
            except subprocess.TimeoutExpired:
                second.kill()
                return 0, "nothing, and went on running"
        return second.returncode, said.decode()

    def client(self) -> ClientSession:
        """Return a session with it over TCP."""
        return ClientSession(self.url, timeout=ClientTimeout(total=60), auto_decompress=False)

    def operator(self) -> ClientSession:
        """Return a session with its admin socket."""
        connector = UnixConnector(str(self.socket))
        return ClientSession("http://admin", connector=connector, timeout=ClientTimeout(total=60))

    @property
    def loses_power(self) -> bool:
        """Whether its disk fails for the last moments of each life."""
        return self._power is not None

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def signal(self, number: int = signal.SIGKILL) -> None:
        """Send a signal; does nothing when it has ended."""
        if self._process is not None:
            self._process.send_signal(number)

    def strike(self) -> None:
        """Kill it; take the power from its disk first, if that is what is done here."""
        if self._power is not None and self.is_alive and not self.is_cut:
            self.is_cut = True
            self._power.cut()
        self.signal(signal.SIGKILL)

    async def ended(self) -> int:
        """Wait for its end, and for its disk to be back; return its status, negative for a signal."""
        assert self._process is not None
        status = await asyncio.to_thread(self._process.wait, START_WITHIN)
        if self._power is not None and self.is_cut:
            self._restoring = asyncio.create_task(asyncio.to_thread(self._power.restore))
            await asyncio.shield(self._restoring)
            self.is_cut = False
        return status

    async def close(self) -> None:
        """End it for good."""
        if self._restoring is not None:
            await self._restoring
        if self.is_alive:
            self.signal()
            await self.ended()
        if self._power is not None:
            self._power.close()

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop all its threads for the time of a look at its directory."""
        self.signal(signal.SIGSTOP)
        try:
            while self.is_alive and not self._stands_still():
                time.sleep(0.0002)
            yield
        finally:
            self.signal(signal.SIGCONT)

    def tail(self, characters: int = 4000) -> str:
        """Return the end of what it wrote to stderr."""
        return self.log.read_text(errors="replace")[-characters:] if self.log.exists() else ""

    def _stands_still(self) -> bool:
        assert self._process is not None
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            states = [
                (task / "stat").read_text().rpartition(")")[2].split()[0]
                for task in Path(f"/proc/{self._process.pid}/task").iterdir()
            ]
            return all(state in "TtZX" for state in states)
        return not self.is_alive

    def _spawn(self, *flags: str, stderr: int | None = None) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*self._argv, *flags],
                env=self._env,
                cwd=self._tree,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr or log,
                preexec_fn=_apart,  # noqa: PLW1509 - no other thread of ours holds a lock it needs
            )


def _apart() -> None:
    """Ctrl-C is for the harness, which ends this; and if it cannot, the kernel does."""
    os.setpgrp()
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


async def _is_well(client: ClientSession) -> bool:
    try:
        async with client.get("/-/healthz") as answer:
            return answer.status == 200
    except (ClientError, OSError):
        return False
