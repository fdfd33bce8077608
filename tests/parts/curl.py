"""curl as the plainest client: it fetches what a manifest names and the tests hash it."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from tests.parts.client import PullError, run
from tests.parts.images import DOCKER, HERE, OCI
from tests.parts.process import hermetic, workdir

ACCEPT = f"{OCI.index}, {OCI.manifest}, {DOCKER.index}, {DOCKER.manifest}"


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer whose body, `size` bytes, lies in a file."""

    status: int
    headers: Mapping[str, str]  # names in lower case
    body: Path

    @property
    def content_type(self) -> str:
        """The media type."""
        return self.headers.get("content-type", "")

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return self.body.stat().st_size

    @property
    def digest(self) -> str:
        """What the bytes hash to."""
        with self.body.open("rb") as file:
            return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


class Curl:
    """`curl` for one manifest after the other, then every blob; checks every digest itself."""

    name = "curl"

    def __init__(self, root: Path, mirror: str) -> None:
        self._env = hermetic(root)
        self._base = f"http://{mirror}/v2"
        self._bodies = root / "bodies"
        self._bodies.mkdir()
        self.replies: list[Reply] = []  # all since forget()

    def get(self, path: str) -> Reply:
        """GET `/v2/<path>`, whatever the status of the answer."""
        body = self._bodies / str(len(self.replies))
        body.touch()  # curl makes no file for an empty body
        flags = ["--silent", "--show-error", "--output", str(body), "--dump-header", "-"]
        accept = ["--header", f"Accept: {ACCEPT}"]
        said = run(["curl", *flags, *accept, f"{self._base}/{path}"], self._env)
        status, _, rest = said.partition("\n")
        headers = {name.lower(): value for name, value in Parser().parsestr(rest).items()}
        reply = Reply(int(status.split()[1]), headers, body)
        self.replies.append(reply)
        return reply

    def pull(self, reference: str) -> str:
        """Fetch an image whole, for this platform; return the digest of what was asked for."""
        separator = "@" if "@" in reference else ":"
        repository, _, ref = reference.partition(separator)
        top = manifest = self._fetch(repository, "manifests", ref)
        if manifest.content_type in {OCI.index, DOCKER.index}:
            children = json.loads(manifest.body.read_bytes())["manifests"]
            ours = [c["digest"] for c in children if c["platform"]["architecture"] == HERE]
            manifest = self._fetch(repository, "manifests", ours[0])
        named = json.loads(manifest.body.read_bytes())
        for blob in (named["config"], *named["layers"]):
            self._fetch(repository, "blobs", blob["digest"])
        return top.digest

    def forget(self) -> None:
        """Drop every body."""
        shutil.rmtree(self._bodies)
        self._bodies.mkdir()
        self.replies.clear()

    def _fetch(self, repository: str, kind: str, ref: str) -> Reply:
        path = f"{repository}/{kind}/{ref}"
        reply = self.get(path)
        if reply.status != 200:
            raise PullError(f"{path} → {reply.status} {reply.body.read_bytes()[:1000]!r}")
        if ref.startswith("sha256:") and reply.digest != ref:
            raise PullError(f"{path} hashes to {reply.digest}")
        return reply


@contextmanager
def running(mirror: str) -> Iterator[Curl]:
    """Give a curl that asks `mirror`, a host:port."""
    with workdir("curl") as root:
        yield Curl(root, mirror)
