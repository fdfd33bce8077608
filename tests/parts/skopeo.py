"""skopeo, which speaks to the mirror by name: the path says whose image it wants."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.parts.client import run
from tests.parts.process import hermetic, workdir


class Skopeo:
    """`skopeo copy` into directories; `prefix` is `` or `docker.io/`."""

    def __init__(self, root: Path, mirror: str, prefix: str) -> None:
        self.name = f"skopeo {prefix}".strip()
        self._source = f"docker://{mirror}/{prefix}"
        self._images = root / "images"
        # Without a user's id, root's cache of blob places would be the system's.
        apart = {"_CONTAINERS_ROOTLESS_UID": "1", "XDG_DATA_HOME": str(root / "data")}
        registries, self._auth = root / "registries.conf", root / "auth.json"
        registries.write_text("")
        self.log_out()
        self._env = hermetic(root, REGISTRY_AUTH_FILE=str(self._auth), **apart)
        self._skopeo = ["skopeo", "--insecure-policy", f"--tmpdir={root}"]
        self._skopeo += [f"--registries-conf={registries}"]

    def pull(self, reference: str) -> str:
        """Copy this platform's image; return the digest of its manifest."""
        return self._copy(reference)

    def log_in(self, registry: str, user: str, password: str) -> None:
        """`skopeo login`, which verifies the login."""
        words = ("login", "--tls-verify=false", f"--username={user}", "--password-stdin", registry)
        run([*self._skopeo, *words], self._env, given=password)

    def log_out(self) -> None:
        """Forget every login."""
        self._auth.write_text("{}")

    def pull_by_path(self, reference: str, *options: str) -> str:
        """Copy from the registry that the reference names; without options, over plain HTTP."""
        return self._copy_from(f"docker://{reference}", *(options or ("--src-tls-verify=false",)))

    def copy_all(self, reference: str) -> Path:
        """Copy every platform; return the directory with each manifest and blob as a file."""
        self._copy(reference, "--all")
        return self._place(self._source + reference)

    def read(self, layout: Path, name: str, kind: str) -> Path:
        """Copy an image out of an OCI layout, as `dir`, `oci` or `docker-archive`; return where."""
        place = self._place(f"{kind}-{name}")
        place.parent.mkdir(exist_ok=True)
        self._run("copy", "--quiet", f"oci:{layout}:{name}", f"{kind}:{place}")
        return place

    def read_from(self, source: str) -> str:
        """Copy an image from wherever skopeo can read; return the digest of its manifest."""
        return self._copy_from(source)

    def inspect(self, reference: str) -> dict[str, Any]:
        """Return what `skopeo inspect` tells."""
        said: dict[str, Any] = json.loads(
            self._run("inspect", "--tls-verify=false", self._source + reference)
        )
        return said

    def forget(self) -> None:
        """Remove every copy."""
        shutil.rmtree(self._images, ignore_errors=True)

    def _place(self, reference: str) -> Path:
        return self._images / reference.replace("/", "_").replace(":", "_")

    def _copy(self, reference: str, *options: str) -> str:
        return self._copy_from(self._source + reference, "--src-tls-verify=false", *options)

    def _copy_from(self, source: str, *options: str) -> str:
        place = self._place(source)
        place.parent.mkdir(exist_ok=True)
        digest = place.parent / "digest"
        flags = ["--quiet", f"--digestfile={digest}", *options]
        self._run("copy", *flags, source, f"dir:{place}")
        return digest.read_text().strip()

    def _run(self, *words: str) -> str:
        return run([*self._skopeo, *words], self._env)


@contextmanager
def running(mirror: str, prefix: str = "") -> Iterator[Skopeo]:
    """Give a skopeo that asks `mirror`, a host:port, for `<prefix><reference>`."""
    with workdir("skopeo") as root:
        yield Skopeo(root, mirror, prefix)
