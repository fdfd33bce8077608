"""A real Redis, which keeps nothing on the disk."""

import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from redis import Redis as Client

from tests.parts.process import Daemon, command, free_port, hermetic, listens, workdir


class Redis:
    """One server, empty at each start."""

    def __init__(
        self,
        root: Path,
        host: str = "127.0.0.1",
        under: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        """Prepare; `under` is the command that starts it on the machine with the address `host`.

        `options` are more of those of the server.
        """
        self.host = host
        self.port = free_port()
        self.socket = root / "redis.sock"
        self.url = f"redis://{host}:{self.port}/0"
        argv = [*under, command("redis-server"), "--port", str(self.port), "--bind", host]
        argv += ["--protected-mode", "no", "--unixsocket", str(self.socket)]
        argv += ["--save", "", "--dir", str(root), *options]
        self._daemon = Daemon(argv, hermetic(root), root / "redis.log")

    def start(self) -> None:
        """Start it; return when it accepts connections."""
        self._daemon.start(lambda: listens(self.port, self.host))

    def client(self) -> Client:
        """Return a client; use it as a context manager."""
        return Client.from_url(self.url)

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._daemon.kill()

    def pause(self) -> None:
        """Let it answer nothing, with its connections open."""
        os.kill(self._daemon.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on after `pause`."""
        os.kill(self._daemon.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it in whatever state it is."""
        if self._daemon.is_alive():
            self._daemon.kill()


@contextmanager
def running() -> Iterator[Redis]:
    """Give a running Redis that is empty."""
    with workdir("redis") as root:
        redis = Redis(root)
        redis.start()
        try:
            yield redis
        finally:
            redis.close()
