"""podman with storage and registries.conf of its own."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.parts.client import run
from tests.parts.process import command, hermetic, workdir

REGISTRIES = """\
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "{mirror}"
insecure = true
"""

# Locks in files: the default is one shared memory segment for the whole machine.
CONTAINERS = """\
[engine]
lock_type = "file"
events_logger = "none"
cgroup_manager = "cgroupfs"
"""

STORAGE = """\
[storage]
driver = "vfs"
graphroot = "{root}/storage"
runroot = "{root}/run"
"""

# Its cache of blob places has a fixed home under /var/lib: give it another /var/lib.
APART = ("unshare", "--mount", "sh", "-c", 'mount --bind "$0" /var/lib && exec podman "$@"')

POLICY = {"default": [{"type": "insecureAcceptAnything"}]}


class Podman:
    """`podman pull` with the mirror in registries.conf."""

    name = "podman"

    def __init__(self, root: Path, mirror: str) -> None:
        command("podman")  # a missing one is named here, not by the shell
        (root / "registries.conf").write_text(REGISTRIES.format(mirror=mirror))
        (root / "containers.conf").write_text(CONTAINERS)
        (root / "storage.conf").write_text(STORAGE.format(root=root))
        (root / "policy.json").write_text(json.dumps(POLICY))
        self._auth = root / "auth.json"
        self.log_out()
        self._env = hermetic(
            root,
            CONTAINERS_CONF=str(root / "containers.conf"),
            CONTAINERS_REGISTRIES_CONF=str(root / "registries.conf"),
            CONTAINERS_STORAGE_CONF=str(root / "storage.conf"),
            REGISTRY_AUTH_FILE=str(root / "auth.json"),
            XDG_RUNTIME_DIR=str(root),
            TMPDIR=str(root),
        )
        (root / "lib").mkdir()
        self._podman = [*APART, str(root / "lib"), f"--tmpdir={root / 'libpod'}"]
        self._policy = f"--signature-policy={root / 'policy.json'}"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which `podman` has this storage."""
        return self._env

    def pull(self, reference: str) -> str:
        """Pull and unpack; return the digest that podman shows for the image."""
        image = self.pull_from(f"docker.io/{reference}")
        return self._run("image", "inspect", "--format={{.Digest}}", image).strip()

    def pull_from(self, source: str) -> str:
        """Pull from wherever podman can, such as `oci:DIR:NAME`; return the digest of the config."""
        return f"sha256:{self._run('pull', '--quiet', self._policy, source).strip()}"

    def log_in(self, registry: str, user: str, password: str) -> None:
        """`podman login`, which verifies the login."""
        words = ("login", "--tls-verify=false", f"--username={user}", "--password-stdin", registry)
        run([*self._podman, *words], self._env, given=password)

    def log_in_unchecked(self, registry: str, user: str, password: str) -> None:
        """Write a login to auth.json, as `podman login` does after it has verified it."""
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        self._auth.write_text(json.dumps({"auths": {registry: {"auth": encoded}}}))

    def log_out(self) -> None:
        """Forget every login."""
        self._auth.write_text("{}")

    def pull_by_path(self, reference: str) -> str:
        """Pull from the registry that the reference names."""
        image = self._run("pull", "--quiet", "--tls-verify=false", self._policy, reference)
        return self._run("image", "inspect", "--format={{.Digest}}", image.strip()).strip()

    def forget(self) -> None:
        """Remove every image."""
        self._run("rmi", "--all", "--force")
        left = self._run("images", "--all", "--quiet")
        assert not left, f"podman still holds {left}"

    def _run(self, *words: str) -> str:
        return run([*self._podman, *words], self._env)


@contextmanager
def running(mirror: str) -> Iterator[Podman]:
    """Give a podman that reaches docker.io through `mirror`, a host:port."""
    with workdir("podman") as root:
        yield Podman(root, mirror)
