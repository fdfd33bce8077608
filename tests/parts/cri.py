"""containerd as the kubelet drives it: the image service of the CRI, over gRPC, with curl.

The messages are those of k8s.io/cri-api `runtime/v1/api.proto`; a call is one HTTP/2 request.
"""

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from email.parser import Parser
from pathlib import Path

from tests.parts import containerd
from tests.parts.client import PullError, run
from tests.parts.process import hermetic, workdir

CONFIG = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.internal.v1.opt"]
[grpc]
  address = "{socket}"
[ttrpc]
  address = "{socket}.ttrpc"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = "{root}/hosts"
"""


class CRI:
    """`PullImage` with a pull secret, and a hosts.toml that names the mirror of docker.io."""

    def __init__(self, root: Path, socket: Path, mirror: str) -> None:
        self._env = hermetic(root)
        self._socket = socket
        self._body = root / "message"
        folder = root / "hosts" / "docker.io"
        folder.mkdir(parents=True)
        (folder / "hosts.toml").write_text(containerd.HOSTS.format(mirror=mirror))

    def pull(self, image: str, user: str = "", password: str = "", server: str = "") -> None:
        """Pull as a kubelet with this pull secret. Raises PullError."""
        secret = _field(1, user) + _field(2, password) + _field(4, server)
        self._call("PullImage", _field(1, _field(1, image)) + _field(2, secret))

    def remove(self, image: str) -> None:
        """Remove an image."""
        self._call("RemoveImage", _field(1, _field(1, image)))

    def _call(self, method: str, message: bytes) -> None:
        self._body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
        flags = ["--silent", "--show-error", "--http2-prior-knowledge", "--dump-header", "-"]
        flags += ["--unix-socket", str(self._socket), "--output", f"{self._body}.answer"]
        headers = ["--header", "Content-Type: application/grpc", "--header", "TE: trailers"]
        body = ["--data-binary", f"@{self._body}"]
        url = f"http://localhost/runtime.v1.ImageService/{method}"
        said = run(["curl", *flags, *headers, *body, url], self._env)
        found = Parser().parsestr(said.partition("\n")[2].replace("\n\n", "\n"))
        if found["grpc-status"] != "0":
            raise PullError(f"{method}: {found['grpc-message']}")


def _field(number: int, value: str | bytes) -> bytes:
    """Return a field of a protobuf message; an empty one is left out."""
    data = value if isinstance(value, bytes) else value.encode()
    length, varint = len(data), bytearray()
    while length > 127:
        varint.append(length & 127 | 128)
        length >>= 7
    return bytes([number << 3 | 2, *varint, length]) + data if data else b""


@contextmanager
def running(mirror: str) -> Iterator[CRI]:
    """Give a containerd that reaches docker.io through `mirror`, a host:port."""
    with workdir("cri") as root, containerd.daemon(root, CONFIG) as socket:
        yield CRI(root, socket, mirror)
