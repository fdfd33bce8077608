"""The real process: `python -m proxy serve` with a configuration file of its own."""

import json
import os
import ssl
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import yaml

from tests.parts.process import NO_AUTHORITIES, Daemon, free_port, hermetic, workdir

_ANY = ssl._create_unverified_context()  # its certificates are made by the tests

REPOSITORY_ROOT = Path(__file__).resolve().parents[2]


def merged(base: Mapping[str, Any], extra: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `extra` laid over it, mapping by mapping."""
    both = dict(base)
    for key, value in extra.items():
        if isinstance(value, Mapping) and isinstance(both.get(key), Mapping):
            both[key] = merged(both[key], value)
        else:
            both[key] = value
    return both


WORKERS = int(os.environ.get("MILLPOND_TEST_WORKERS", "1"))
"""With 2, the same tests go through worker processes."""


class Millpond:
    """The proxy on a loopback port and a storage directory it keeps over restarts."""

    def __init__(
        self,
        root: Path,
        upstream: str,
        port: int,
        extra: Mapping[str, Any],
        under: Sequence[str] = (),
    ) -> None:
        self.port = port
        self.address = extra.get("listen", f"127.0.0.1:{port}")
        self.url = f"{'https' if 'tls' in extra else 'http'}://{self.address}"
        self.storage = root / "storage"
        settings = {
            "listen": self.address,
            "workers": WORKERS,
            "storage": {"path": str(self.storage), "max_size": "5GiB"},
            "default_upstream": "docker.io",
            "upstreams": {"docker.io": {"url": upstream, "library_prefix": True}},
            "freshness": {"tag_ttl": "5m"},
            "log": {"format": "json"},
        }
        self._settings = merged(settings, extra)
        self.config = root / "millpond.yaml"
        self.configure({})
        argv = [*under, sys.executable, "-m", "proxy", "serve", "-c", str(self.config)]
        own = {"PYTHONPATH": str(REPOSITORY_ROOT), "PYTHONUNBUFFERED": "1"}
        env = hermetic(root, **own, **NO_AUTHORITIES)
        self._daemon = Daemon(argv, env, root / "millpond.log")
        self._daemon.cwd = REPOSITORY_ROOT

    def start(self) -> None:
        """Start the process; return when it says that it is ready."""
        self._daemon.start(self._is_ready)

    @property
    def pid(self) -> int:
        """The id of the process."""
        return self._daemon.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs."""
        return self._daemon.is_alive()

    def run_under(self, *words: str) -> None:
        """From the next start on, have another program start it, which must become it (exec)."""
        self._daemon.argv = [*words, *self._daemon.argv]

    def stop(self, within: float = 20) -> str:
        """End it by SIGTERM; fail unless it ends well within seconds. Return its log."""
        status = self._daemon.stop(within)
        log = self.log()
        assert status == 0, f"exit status {status} on SIGTERM:\n{self._daemon.tail()}"
        assert "Traceback" not in log, log
        return log

    def configure(self, extra: Mapping[str, Any]) -> None:
        """Write its configuration anew, with `extra` laid over that of the start."""
        self.config.write_text(yaml.safe_dump(merged(self._settings, extra)))

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self._daemon.pid, number)

    def status(self) -> int:
        """Return its exit status once it has ended by itself."""
        assert not self._daemon.is_alive()
        return self._daemon.stop()

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the events of its log that have this name."""
        lines = self._daemon.log.read_text().splitlines(keepends=True)
        whole = (line for line in lines if line.startswith("{") and line.endswith("\n"))
        events = map(json.loads, whole)
        return [event for event in events if event.get("event") == name]

    def kill(self) -> None:
        """End it by SIGKILL."""
        self._daemon.kill()

    def restart(self) -> None:
        """Stop it and start it on what it stored."""
        self.stop()
        self.start()

    def log(self) -> str:
        """Return all it wrote so far, on stdout and stderr."""
        return self._daemon.stdout.read_text() + self._daemon.log.read_text()

    def stats(self) -> dict[str, Any]:
        """Return what `GET /-/stats` says."""
        with urlopen(f"{self.url}/-/stats", timeout=30) as answer:
            said: dict[str, Any] = json.load(answer)
        return said

    def _is_ready(self) -> bool:
        try:
            with urlopen(f"{self.url}/-/readyz", timeout=5, context=_ANY) as answer:
                return bool(answer.status == 200)
        except OSError:  # refused, or 503: HTTPError is an OSError
            return False


@contextmanager
def running(
    upstream: str,
    port: int = 0,
    extra: Mapping[str, Any] | None = None,
    under: Sequence[str] = (),
) -> Iterator[Millpond]:
    """Give a running Millpond with an empty cache before `upstream`, a base URL.

    `under` is a command that starts it, such as `prlimit`.
    """
    with workdir("proxy") as root:
        millpond = Millpond(root, upstream, port or free_port(), extra or {}, under)
        millpond.start()
        try:
            yield millpond
        finally:
            millpond.stop()
