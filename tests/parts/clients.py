"""Every real client by name, started when first asked for."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial

from tests.parts import containerd, curl, docker, podman, skopeo
from tests.parts.client import Client

RUNNING: Mapping[str, Callable[[str], AbstractContextManager[Client]]] = {
    "docker": docker.running,
    "containerd": containerd.running,
    "podman": podman.running,
    "skopeo": skopeo.running,
    "skopeo-docker.io": partial(skopeo.running, prefix="docker.io/"),
    "curl": curl.running,
}


class Clients:
    """The clients of one mirror, a host:port that need not answer yet."""

    def __init__(self, mirror: str, stack: ExitStack) -> None:
        self._mirror = mirror
        self._stack = stack
        self._started: dict[str, Client] = {}

    def __repr__(self) -> str:
        return f"<Clients of {self._mirror}: {sorted(self._started)}>"

    def __getitem__(self, name: str) -> Client:
        """Return the client with nothing in its store."""
        client = self._started.get(name)
        if client is None:
            client = self._stack.enter_context(RUNNING[name](self._mirror))
            self._started[name] = client
        client.forget()
        return client


@contextmanager
def running(mirror: str) -> Iterator[Clients]:
    """Give the clients of `mirror`; end every one that was started."""
    with ExitStack() as stack:
        yield Clients(mirror, stack)
