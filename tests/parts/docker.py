"""dockerd with a containerd, a root and a socket of its own, driven by docker.

All it leaves on the machine are the empty /run/docker/plugins and /run/containerd/s, whose
places are built in.
"""

import base64
import json
import os
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from tests.parts import containerd
from tests.parts.client import PullError, run
from tests.parts.process import Daemon, hermetic, wait_until, workdir

DAEMON_JSON = "etc/docker/daemon.json"
"""Where dockerd's settings are below its root."""

_MOUNT = "mkdir -p /etc/docker && mount -t tmpfs none /etc/docker"
_COPY = 'cp -r "$0" /etc/docker/certs.d'
_WITH_CERTIFICATES = (
    *("unshare", "--mount", "sh", "-c"),
    f'{_MOUNT} && {_COPY} && exec dockerd "$@"',
)
"""Words that start dockerd with a certs.d of its own: the place is built in."""


class Docker:
    """`docker pull` by a daemon that has the mirror in its `registry-mirrors`."""

    name = "docker"

    def __init__(self, root: Path, socket: Path) -> None:
        self.root = root
        self.settings = root / DAEMON_JSON
        self._config = root / "client" / "config.json"
        config = str(self._config.parent)
        self._env = hermetic(root, DOCKER_HOST=f"unix://{socket}", DOCKER_CONFIG=config)

    def reload(self) -> None:
        """Have the daemon read its settings again; return when it has their mirrors."""
        wanted = json.loads(self.settings.read_text())["registry-mirrors"]
        os.kill(int((self.root / "docker.pid").read_text()), signal.SIGHUP)

        def mirrors() -> list[str]:
            said = self._run("info", "--format", "{{json .RegistryConfig.Mirrors}}")
            return [mirror.rstrip("/") for mirror in json.loads(said)]

        wait_until(lambda: mirrors() == wanted, f"dockerd to use {wanted}")

    def pull(self, reference: str) -> str:
        """Pull; return the digest of the index or manifest."""
        said = self._run("pull", reference)
        found = re.search(r"^Digest: (\S+)$", said, re.MULTILINE)
        if not found:
            raise PullError(f"docker pull {reference} names no digest:\n{said}")
        return found[1]

    @property
    def env(self) -> dict[str, str]:
        """The environment in which `docker` reaches this daemon."""
        return self._env

    def log_in(self, registry: str, user: str, password: str) -> None:
        """`docker login`, which the daemon verifies."""
        words = ("login", f"--username={user}", "--password-stdin", registry)
        run(["docker", *words], self._env, given=password)

    def log_in_unchecked(self, registry: str, user: str, password: str) -> None:
        """Write a login to config.json, as `docker login` does after it has verified it."""
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._config.parent.mkdir(exist_ok=True)
        self._config.write_text(json.dumps({"auths": {registry: {"auth": encoded}}}))

    def log_out(self) -> None:
        """Forget every login."""
        self._config.unlink(missing_ok=True)

    def pull_by_path(self, reference: str) -> str:
        """Pull from the registry that the reference names."""
        return self.pull(reference)

    def build(self, folder: Path) -> str:
        """Build an image with the BuildKit of the daemon; return what it wrote."""
        return run(["docker", "build", str(folder)], {**self._env, "DOCKER_BUILDKIT": "1"})

    def forget(self) -> None:
        """Remove every image, and the layers that BuildKit holds: a pull would skip them."""
        self._run("builder", "prune", "--all", "--force")
        if ids := self._run("images", "--all", "--quiet").split():
            self._run("rmi", "--force", *sorted(set(ids)))
        left = self._run("images", "--all", "--quiet")
        assert not left, f"docker still holds {left}"

    def load(self, archive: Path) -> str:
        """`docker load`; return what it says."""
        return self._run("load", "--input", str(archive))

    def save(self, archive: Path, *images: str) -> None:
        """`docker save`."""
        self._run("save", "--output", str(archive), *images)

    def import_image(self, tarball: Path, name: str) -> None:
        """Make an image of a root file system, with no registry involved."""
        self._run("import", str(tarball), name)

    def run(self, image: str, *command: str) -> str:
        """Run the image's command, or this one, to its end; return what it wrote."""
        no_network = ("--network", "none", "--pull", "never")
        return self._run("run", "--rm", *no_network, image, *command)

    def _run(self, *words: str) -> str:
        return run(["docker", *words], self._env)


def settings(root: Path, containerd_socket: Path, mirror: str) -> dict[str, object]:
    """Return a daemon.json that keeps everything under `root` and leaves the network alone."""
    return {
        "bridge": "none",
        "containerd": str(containerd_socket),
        "data-root": f"{root}/data",
        "deprecated-key-path": f"{root}/key.json",
        "exec-root": f"{root}/exec",
        "hosts": [f"unix://{root}/docker.sock"],
        "ip-forward": False,
        "ip-masq": False,
        "ip6tables": False,
        "iptables": False,
        "pidfile": f"{root}/docker.pid",
        "registry-mirrors": [mirror if "://" in mirror else f"http://{mirror}"],
        "storage-driver": "vfs",
        "userland-proxy": False,
    }


@contextmanager
def running(mirror: str, certificates: Path | None = None) -> Iterator[Docker]:
    """Give a docker that reaches docker.io through `mirror`, a host:port or a URL.

    `certificates` is what dockerd sees as /etc/docker/certs.d, for a mirror beyond loopback.
    """
    with workdir("docker") as root, containerd.daemon(root) as containerd_socket:
        config = root / DAEMON_JSON
        config.parent.mkdir(parents=True)
        config.write_text(json.dumps(settings(root, containerd_socket, mirror)))
        socket = root / "docker.sock"
        argv = ["dockerd", "--config-file", str(config)]
        env = hermetic(root)
        if certificates is not None:
            env |= dict.fromkeys(("NO_PROXY", "no_proxy"), f"127.0.0.1,{urlsplit(mirror).hostname}")
            argv = [*_WITH_CERTIFICATES, str(certificates), *argv[1:]]
        daemon = Daemon(argv, env, root / "dockerd.log")
        daemon.start(socket.is_socket, within=60)
        try:
            docker = Docker(root, socket)
            docker.forget()  # the socket is there before the daemon answers
            yield docker
        finally:
            daemon.stop()
