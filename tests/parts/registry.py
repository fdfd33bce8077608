"""Debian's docker-registry as the upstream: a real registry with token auth and its own log.

That log is the proof of what a cache did or did not ask for: the tests read nothing else.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self
from urllib.error import HTTPError
from urllib.request import urlopen

import yaml

from tests.parts.process import Daemon, free_port, hermetic, listens, wait_until, workdir
from tests.parts.token_server import Access, TokenServer

# Apache's combined format, as docker-registry writes it to stdout.
LINE = re.compile(
    r'\S+ \S+ \S+ \[[^]]+\] "(?P<method>[A-Z]+) (?P<path>\S+) HTTP/[\d.]+" '
    r'(?P<status>\d{3}) (?P<size>\d+) "(?:[^"\\]|\\.)*" "(?P<agent>(?:[^"\\]|\\.)*)"'
)

# The registry writes a request's line after the last byte went out. A request of our own, which is
# in the log once it was answered, shows that the registry has run since; then the log is quiet.
QUIET_SECONDS = 0.05
_MARK = "/v2/?mark"


@dataclass(frozen=True, slots=True)
class Request:
    """One request as the registry logged it; `size` is the bytes of the response body."""

    method: str
    path: str
    status: int
    size: int
    user_agent: str

    @classmethod
    def parse(cls, line: str) -> Self:
        """Return the request on a log line; a line that is none fails."""
        found = LINE.fullmatch(line)
        assert found, f"not an access-log line: {line!r}"
        method, path, status, size, agent = found.groups()
        return cls(method, path, int(status), int(size), agent)

    @property
    def is_content(self) -> bool:
        """Tell whether a manifest or a blob was sent, whole or in part."""
        return self.method == "GET" and self.status in {200, 206} and self.path != "/v2/"

    @property
    def ref(self) -> str:
        """The last component of the path, query and all: a tag, a digest, or ''."""
        return self.path.rpartition("/")[2]


class Registry:
    """docker-registry on a loopback port it keeps over stop() and start()."""

    def __init__(self, root: Path, tokens: TokenServer) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.tokens = tokens
        self.storage = root / "storage"
        settings = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": False}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}},
            "http": {"addr": f"127.0.0.1:{self.port}", "secret": "tests"},
            "auth": {
                "token": {
                    "realm": tokens.realm,
                    "service": tokens.service,
                    "issuer": tokens.issuer,
                    "rootcertbundle": str(tokens.bundle),
                }
            },
        }
        config = root / "registry.yaml"
        config.write_text(yaml.safe_dump(settings))
        argv = ["docker-registry", "serve", str(config)]
        self._daemon = Daemon(argv, hermetic(root), root / "registry.log")

    def start(self) -> None:
        """Start, or start again with the same content; asks nothing that would be logged."""
        self._daemon.start(lambda: listens(self.port))

    def stop(self) -> None:
        """Stop; connections are refused from here on."""
        self._daemon.stop()

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Take the registry and its token server away for a while."""
        self.stop()
        self.tokens.stop()
        try:
            yield
        finally:
            self.tokens.start()
            self.start()

    def requests(self) -> list[Request]:
        """Return every request since the first start, once the log is quiet."""
        self._run_once()
        text = self._daemon.stdout.read_text()
        while True:
            time.sleep(QUIET_SECONDS)
            before, text = text, self._daemon.stdout.read_text()
            if text == before:
                found = [Request.parse(line) for line in text.splitlines()]
                return [request for request in found if request.path != _MARK]

    def _run_once(self) -> None:
        """Return once the registry has answered a request and logged it; at once if it is away."""
        if not self._daemon.is_alive():
            return
        log, before = self._daemon.stdout, self._daemon.stdout.read_text().count(_MARK)
        try:
            urlopen(f"{self.url}{_MARK}", timeout=30).close()
        except HTTPError as refused:  # it has no token
            refused.close()
        wait_until(lambda: log.read_text().count(_MARK) > before, "the registry's log")

    def mark(self) -> int:
        """Return a place in the log, for since()."""
        return len(self.requests())

    def since(self, mark: int) -> list[Request]:
        """Return the requests logged after mark()."""
        return self.requests()[mark:]


@contextmanager
def running(access: Access) -> Iterator[Registry]:
    """Give a running registry with its own running token server (`.tokens`)."""
    with workdir("registry") as root:
        tokens = TokenServer(root, access)
        registry = Registry(root, tokens)
        tokens.start()
        registry.start()
        try:
            yield registry
        finally:
            registry.stop()
            tokens.stop()


@contextmanager
def with_htpasswd(content: Path, users: Path) -> Iterator[str]:
    """Give the URL of a registry over the same content that asks for Basic credentials."""
    with workdir("registry-htpasswd") as root:
        port = free_port()
        settings = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(content)}},
            "http": {"addr": f"127.0.0.1:{port}", "secret": "tests"},
            "auth": {"htpasswd": {"realm": "tests", "path": str(users)}},
        }
        config = root / "registry.yaml"
        config.write_text(yaml.safe_dump(settings))
        argv = ["docker-registry", "serve", str(config)]
        daemon = Daemon(argv, hermetic(root), root / "registry.log")
        daemon.start(lambda: listens(port))
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            daemon.stop()
