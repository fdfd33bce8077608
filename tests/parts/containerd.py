"""containerd with a root of its own, driven by ctr."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.parts.client import PullError, run
from tests.parts.process import Daemon, hermetic, workdir

CONFIG = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
"""

# `server` is the same mirror: containerd asks it last, so nothing leads to the public registry.
HOSTS = """\
server = "http://{mirror}"
[host."http://{mirror}"]
  capabilities = ["pull", "resolve"]
"""


@contextmanager
def daemon(root: Path) -> Iterator[Path]:
    """Give the socket of a containerd that keeps everything under `root`."""
    socket = root / "containerd.sock"
    config = root / "containerd.toml"
    config.write_text(CONFIG.format(root=root, socket=socket))
    argv = ["containerd", "--config", str(config)]
    process = Daemon(argv, hermetic(root), root / "containerd.log")
    process.start(socket.is_socket)
    try:
        yield socket
    finally:
        process.stop()


class Containerd:
    """`ctr images pull` with a hosts.toml that names the mirror; it adds `?ns=docker.io`."""

    name = "containerd"

    def __init__(self, root: Path, socket: Path, mirror: str) -> None:
        self._env = hermetic(root)
        self._ctr = ["ctr", "--address", str(socket), "--namespace", "tests"]
        self._hosts = root / "hosts"
        (self._hosts / "docker.io").mkdir(parents=True)
        (self._hosts / "docker.io" / "hosts.toml").write_text(HOSTS.format(mirror=mirror))

    def pull(self, reference: str) -> str:
        """Pull and unpack; return the digest of the index or manifest."""
        full = f"docker.io/{reference}"
        hosts = ["--hosts-dir", str(self._hosts), "--snapshotter", "native"]
        self._run("images", "pull", *hosts, full)
        for line in self._run("images", "ls").splitlines()[1:]:
            name, _, digest, *_ = line.split()
            if name == full:
                return digest
        raise PullError(f"ctr does not list {full}")

    def forget(self) -> None:
        """Remove every image and let the garbage collector end before returning."""
        for name in self._run("images", "ls", "--quiet").split():
            self._run("images", "rm", "--sync", name)
        left = self._run("content", "ls", "--quiet")
        assert not left, f"containerd still holds {left}"

    def _run(self, *words: str) -> str:
        return run([*self._ctr, *words], self._env)


@contextmanager
def running(mirror: str) -> Iterator[Containerd]:
    """Give a containerd that reaches docker.io through `mirror`, a host:port."""
    with workdir("containerd") as root, daemon(root) as socket:
        yield Containerd(root, socket, mirror)
