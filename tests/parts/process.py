"""Start, watch and end the programs the tests drive. Knows nothing of registries."""

import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.parts import forked

# Debian's own daemons and clients come first: their versions match each other.
PATH = os.pathsep.join(("/usr/sbin", "/usr/bin", "/sbin", "/bin", os.environ.get("PATH", "")))

# A client that falls back to the public registry must fail, and at once: nobody listens here.
NOWHERE = "http://127.0.0.1:9"

_AUTHORITY = Path(__file__).resolve().parents[1] / "data" / "authority.pem"
NO_AUTHORITIES = {"SSL_CERT_FILE": str(_AUTHORITY), "SSL_CERT_DIR": os.devnull}
"""What trusts no certificate but those that a test names: obstore needs one authority to start, and
the key of this one was thrown away."""


def command(name: str) -> str:
    """Return the path of the program `name`; a missing one is a failure, never a skip."""
    found = shutil.which(name, path=PATH)
    assert found, f"{name} is not installed: run tests/parts/install as root"
    return found


def hermetic(home: Path, **more: str) -> dict[str, str]:
    """Return an environment that reads no user's settings and reaches loopback only."""
    loopback = "127.0.0.1,localhost"
    proxies = {"HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "NO_PROXY": loopback}
    return {
        "PATH": PATH,
        "HOME": str(home),
        "LANG": "C.UTF-8",
        **proxies,
        **{name.lower(): value for name, value in proxies.items()},
        **more,
    }


def free_port() -> int:
    """Return a loopback port that is not in use.

    It is none of those that the kernel picks from 32768 for the sockets of other tests, which could
    take it before the program listens.
    """
    while True:
        port = 12_000 + secrets.randbelow(20_000)
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def held(host: str) -> tuple[socket.socket, int]:
    """Return a socket and the port that it keeps: only those that name the port can listen on it.

    The kernel gives it to no other socket, and connections are refused while there is no listener.
    """
    kept = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind((host, 0))
    return kept, kept.getsockname()[1]


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Return True if something accepts connections on the port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(holds: Callable[[], bool], what: str, within: float = 30) -> None:
    """Return when `holds()` is true; fail, naming `what`, after `within` seconds."""
    end = time.monotonic() + within
    while not holds():
        assert time.monotonic() < end, f"waited {within} s in vain for {what}"
        time.sleep(0.02)


@contextmanager
def workdir(name: str) -> Iterator[Path]:
    """Give a short-named directory (sockets allow 107 bytes) and leave no mount or file of it."""
    root = Path(tempfile.mkdtemp(prefix=f"millpond-{name}-"))
    try:
        yield root
    finally:
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed([m for m in mounts if m.startswith(f"{root}/")]):
            subprocess.run([command("umount"), "-l", mount], check=True)
        shutil.rmtree(root)


class Daemon:
    """A program that runs until told to stop, its output in one or two files."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.argv = [command(argv[0]), *argv[1:]]
        self.env = dict(env)
        self.log = log  # what it says on stderr
        self.stdout = log.with_suffix(".out")
        self.cwd: Path | None = None
        self._process: forked.Forked | subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        state = "running" if self.is_alive() else "stopped"
        return f"<Daemon {Path(self.argv[0]).name} {state}>"

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self._process, f"{self!r} was never started"
        return self._process.pid

    def is_alive(self) -> bool:
        """Tell whether the process runs."""
        return self._process is not None and self._process.poll() is None

    def start(self, is_ready: Callable[[], bool], within: float = 30) -> None:
        """Start the process and return when `is_ready()`; fail with its log when it ends."""
        assert not self.is_alive(), f"{self!r} already runs"
        with self.stdout.open("ab") as out, self.log.open("ab") as err:
            streams = (0, out.fileno(), err.fileno())
            self._process = forked.started(self.argv, self.env, self.cwd, streams)

        def ready() -> bool:
            assert self.is_alive(), f"{self!r} ended while starting:\n{self.tail()}"
            return is_ready()

        try:
            wait_until(ready, f"{self!r} to be ready", within)
        except BaseException:
            self.stop()
            raise

    def stop(self, within: float = 20) -> int:
        """End the process by SIGTERM (SIGKILL after `within` seconds); return its exit status."""
        assert self._process, f"{self!r} was never started"
        if self.is_alive():
            self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(within)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        """End the process by SIGKILL."""
        assert self._process, f"{self!r} was never started"
        self._process.kill()
        self._process.wait()

    def tail(self, lines: int = 40) -> str:
        """Return the last lines it wrote to stderr."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])
