"""containerd with a root of its own, driven by ctr."""

import shutil
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
def daemon(root: Path, template: str = CONFIG) -> Iterator[Path]:
    """Give the socket of a containerd that keeps everything under `root`."""
    socket = root / "containerd.sock"
    config = root / "containerd.toml"
    config.write_text(template.format(root=root, socket=socket))
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
        self._mirror = mirror
        self._user: list[str] = []
        self._socket = socket
        self.configure("docker.io", HOSTS.format(mirror=mirror))

    @property
    def env(self) -> dict[str, str]:
        """The environment in which `ctr` reaches this containerd."""
        return self._env | {
            "CONTAINERD_ADDRESS": str(self._socket),
            "CONTAINERD_SNAPSHOTTER": "native",
        }

    def configure(self, registry: str, hosts: str) -> None:
        """Write the hosts.toml of a registry."""
        folder = self._hosts / registry
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "hosts.toml").write_text(hosts)

    def reset(self) -> None:
        """Forget the login, and have the mirror for docker.io alone."""
        self.log_out()
        shutil.rmtree(self._hosts)
        self.configure("docker.io", HOSTS.format(mirror=self._mirror))

    def log_in(self, registry: str, user: str, password: str) -> None:
        """Send this login from now on, to every host that asks; containerd verifies nothing."""
        self._user = ["--user", f"{user}:{password}"]

    def log_out(self) -> None:
        """Forget the login."""
        self._user = []

    def pull(self, reference: str) -> str:
        """Pull and unpack; return the digest of the index or manifest."""
        return self.pull_full(f"docker.io/{reference}")

    def pull_by_path(self, reference: str) -> str:
        """Pull from the registry that the reference names."""
        return self._pull(reference, "--plain-http")

    def pull_full(self, image: str) -> str:
        """Pull an image with the hosts.toml of its registry."""
        return self._pull(image, "--hosts-dir", str(self._hosts))

    def _pull(self, image: str, *options: str) -> str:
        words = (*self._user, *options, "--snapshotter", "native", image)
        self._run("images", "pull", *words)
        for line in self._run("images", "ls").splitlines()[1:]:
            name, _, digest, *_ = line.split()
            if name == image:
                return digest
        raise PullError(f"ctr does not list {image}")

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
