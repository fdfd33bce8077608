"""What every case is given: the upstream, its content, rounds, and what is missing here."""

import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Protocol, TypeVar

from benchmarks import ours, rivals
from benchmarks.pull import Connection
from benchmarks.upstream import ACCEPT, Content, Registry, Settings
from tests.fakes.tls import certificate
from tests.parts.process import PATH, workdir
from tests.parts.token_server import Access, TokenServer

T = TypeVar("T")


class Server(Protocol):
    """A contestant: its base URL, and the process whose family's CPU is counted."""

    url: str

    @property
    def pid(self) -> int:
        """The process's id."""
        ...


class Bench:
    """One run. `rounds` is how often every contestant has its turn."""

    def __init__(self, rounds: int, root: Path, registry: Registry, with_tokens: Registry) -> None:
        self.rounds = rounds
        self.root = root
        self.registry = registry
        self._with_tokens = with_tokens
        self.content = Content(registry)
        self.missing: dict[str, str] = {}

    def has(self, program: str) -> bool:
        """Tell whether a program is installed; note it if not."""
        if shutil.which(program, path=PATH):
            return True
        self.missing[program] = f"{program} is not installed"
        return False

    def say(self, what: str) -> None:
        """Tell people how far it is."""
        sys.stderr.write(f"{what}\n")

    @contextmanager
    def contestants(self, *names: str) -> Iterator[dict[str, Any]]:
        """Give ours, and those of `registry` and `nginx` that are installed, with empty caches.

        Their upstream asks for tokens, as real ones do: before one that does not, docker-registry
        asks anew at every request whether it does, and is half as fast. nginx cannot get tokens.
        """
        with ExitStack() as stack:
            yield {
                name: stack.enter_context(self.contestant(name))
                for name in self.installed("ours", *names)
            }

    def installed(self, *names: str) -> list[str]:
        """Return those of some contestants that are installed; note the others."""
        programs = {"registry": "docker-registry", "nginx": "nginx"}
        return [name for name in names if name not in programs or self.has(programs[name])]

    def contestant(self, name: str) -> AbstractContextManager[Server]:
        """Give one contestant with an empty cache, as `contestants` does."""
        match name:
            case "registry":
                return rivals.registry_proxy(self._with_tokens.url)
            case "nginx":
                return rivals.nginx(self.url)
            case _:
                return ours.millpond(self._with_tokens.url)

    @property
    def url(self) -> str:
        """The upstream's base URL."""
        return self.registry.url

    @property
    def certificate(self) -> Path:
        """A directory with `authority.pem`, a certificate for loopback, and its `key.pem`."""
        folder = self.root / "certificate"
        if not folder.exists():
            folder.mkdir()
            certificate(folder)
        return folder

    def second_registry(self, settings: Settings) -> Registry:
        """Return another docker-registry over the same content, not started yet."""
        return _registry(self.root, settings)

    def interleaved(
        self, turns: Mapping[str, Callable[[], T]], rounds: int = 0
    ) -> dict[str, list[T]]:
        """Give everybody one turn a round, each round beginning with the next one.

        `rounds` is the most; 0 is as many as were asked for.
        """
        names = list(turns)
        results: dict[str, list[T]] = {name: [] for name in names}
        for number in range(min(self.rounds, rounds or self.rounds)):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                results[name].append(turns[name]())
        return results


def warm(server: Server, path: str, expected: bytes | int) -> None:
    """Pull `path` until it is held, and see that what comes is right: the body, or its length."""
    for _ in range(3):
        with Connection(server.url) as connection:
            if isinstance(expected, int):
                size = connection.drain(path)[0]
                assert size == expected, f"{server.url}{path}: {size} bytes, not {expected}"
            else:
                body = connection.get(path, **ACCEPT)
                assert body == expected, f"{server.url}{path}: another body"
        time.sleep(0.2)  # docker-registry stores behind the client's back


def _registry(root: Path, settings: Settings) -> Registry:
    return Registry(Path(mkdtemp(dir=root)), root / "storage", settings)


@contextmanager
def running(rounds: int) -> Iterator[Bench]:
    """Give a bench with a running upstream that has no content yet."""
    with workdir("bench") as root, ExitStack() as stack:
        tokens = TokenServer(root, Access({}), lifetime=7200)
        tokens.start()
        stack.callback(tokens.stop)
        registry = stack.enter_context(_registry(root, Settings()).running())
        asking = stack.enter_context(_registry(root, Settings(tokens=tokens)).running())
        yield Bench(rounds, root, registry, asking)
