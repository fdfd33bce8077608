"""Debian's docker-registry as the upstream, and the content that is pulled.

What is pushed stays for the whole run. The one that is pulled from directly asks for no tokens,
so that the direct pull is at its best.
"""

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from tests.parts.images import DOCKER, OCI, Descriptor, Image
from tests.parts.process import Daemon, free_port, hermetic
from tests.parts.push import Pusher, Recipe, push_image, random_layer
from tests.parts.registry import Request
from tests.parts.token_server import TokenServer

BIG = 300_000_000
ACCEPT = {"Accept": f"{OCI.manifest}, {OCI.index}, {DOCKER.manifest}, {DOCKER.index}"}
_DRAW = 1 << 24  # randbytes() has a limit
_OCTETS = "application/octet-stream"


@dataclass(frozen=True, slots=True)
class Settings:
    """Where a docker-registry listens, how it is started, and what its configuration adds."""

    address: str = ""
    prefix: tuple[str, ...] = ()
    http: tuple[tuple[str, Any], ...] = ()
    proxy: str = ""
    tokens: TokenServer | None = None


class Registry:
    """A docker-registry over a storage directory, which several may read at once.

    Set up as Debian's package does it, but that it logs a line for each request and nothing else,
    as all contestants do.
    """

    def __init__(self, root: Path, storage: Path, settings: Settings) -> None:
        port = free_port()
        self.netloc = settings.address or f"127.0.0.1:{port}"
        self.url = f"http://{self.netloc}"
        document: dict[str, Any] = {
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": False}},
            "storage": {
                "cache": {"blobdescriptor": "inmemory"},
                "filesystem": {"rootdirectory": str(storage)},
            },
            "http": {"addr": self.netloc, "secret": "benchmarks", **dict(settings.http)},
        }
        if settings.proxy:
            document["proxy"] = {"remoteurl": settings.proxy}
        if tokens := settings.tokens:
            document["auth"] = {
                "token": {
                    "realm": tokens.realm,
                    "service": tokens.service,
                    "issuer": tokens.issuer,
                    "rootcertbundle": str(tokens.bundle),
                }
            }
        config = root / "registry.yaml"
        config.write_text(yaml.safe_dump(document))
        argv = [*settings.prefix, "docker-registry", "serve", str(config)]
        self._daemon = Daemon(argv, hermetic(root), root / "registry.log")

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._daemon.pid

    @contextmanager
    def running(self) -> Iterator["Registry"]:
        """Start it, give itself, and stop it."""
        self._daemon.start(self._answers)
        try:
            yield self
        finally:
            self._daemon.stop()

    def _answers(self) -> bool:
        host, _, port = self.netloc.rpartition(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True

    def sent(self, path: str) -> int:
        """Return how many body bytes of `path` it has sent so far, to anybody."""
        lines = self._daemon.stdout.read_text().splitlines()
        requests = [Request.parse(line) for line in lines if path in line]
        return sum(one.size for one in requests if one.method == "GET" and one.path == path)


class _Nobody:
    """The login of a registry that asks for none."""

    class access:  # noqa: N801 - an attribute of what stands in for the token server
        pusher = None

    def issue(self, _who: object, _scopes: list[str]) -> str:
        return "none"


class Content:
    """Pushes what the cases pull, when first asked for it. Paths are those of the v2 API."""

    def __init__(self, registry: Registry) -> None:
        registry.tokens = _Nobody()
        self._pusher = Pusher(registry)

    def path(self, blob: Descriptor) -> str:
        """Return where a blob of `blob()` lies."""
        return f"/v2/library/blobs/blobs/{blob.digest}"

    @cache  # noqa: B019 - one object a run
    def blob(self, size: int, number: int = 0) -> Descriptor:
        """Return a blob of so many random bytes; another one for each number."""
        source = random.Random(f"{size} {number}")
        data = b"".join(source.randbytes(min(_DRAW, size - at)) for at in range(0, size, _DRAW))
        return self._pusher.blob("library/blobs", _OCTETS, data)

    @cache  # noqa: B019 - one object a run
    def image(self, layer_size: int, layers: int = 20) -> Image:
        """Return an image of so many layers of so many incompressible bytes each."""
        made = [random_layer(f"{layer_size} {n}", layer_size) for n in range(layers)]
        return push_image(self._pusher, f"library/image{layer_size}", "latest", Recipe(OCI, made))
