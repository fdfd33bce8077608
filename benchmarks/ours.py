"""Millpond as a process, `python -m proxy serve` from the working tree, with default settings.

The settings of the tests are small: their default of 5 GiB holds no image of 10 GB.
"""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.watched import EVERY, OUT, Sample
from tests.parts.millpond import Millpond, merged
from tests.parts.process import free_port, listens, workdir

_SETTINGS = {"shutdown_grace": "1s", "storage": {"max_size": "50GiB"}}


class Ours(Millpond):
    """The proxy, with its process id, and over TLS if told so."""

    def __init__(self, root: Path, upstream: str, extra: Mapping[str, Any]) -> None:
        super().__init__(root, upstream, free_port(), merged(_SETTINGS, extra))
        self.storage = root / "storage"
        for name in list(self._daemon.env):  # a link's far side is not loopback
            if name.lower() in {"http_proxy", "https_proxy"}:
                del self._daemon.env[name]
        self._has_tls = "tls" in extra
        if self._has_tls:
            self.url = f"https://{self.address}"

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._daemon.pid

    def blob_file(self, digest: str) -> Path:
        """Return where it keeps a blob."""
        return self.storage / "blobs" / Path(*digest.split(":"))

    def _is_ready(self) -> bool:
        return listens(self.port) if self._has_tls else super()._is_ready()


class Watched(Ours):
    """The proxy, run by `benchmarks.watched`, which samples its event loop."""

    def __init__(
        self, root: Path, upstream: str, extra: Mapping[str, Any], every: float = 0.005
    ) -> None:
        super().__init__(root, upstream, extra)
        self._samples = root / "samples"
        self._daemon.argv = [sys.executable, "-m", "benchmarks.watched", *self._daemon.argv[3:]]
        self._daemon.env |= {OUT: str(self._samples), EVERY: str(every)}

    def samples(self, since: float, until: float) -> list[Sample]:
        """Return what was sampled between two times of the monotonic clock."""
        lines = self._samples.read_text().splitlines()[:-1]  # the last may be half written
        all_of_them = (Sample(*json.loads(line)) for line in lines)
        return [one for one in all_of_them if since <= one.time <= until]


@contextmanager
def millpond(upstream: str, extra: Mapping[str, Any] | None = None) -> Iterator[Ours]:
    """Give a running Millpond with an empty cache before `upstream`, a base URL."""
    with workdir("ours") as root, _started(Ours(root, upstream, extra or {})) as server:
        yield server


@contextmanager
def watched(
    upstream: str, extra: Mapping[str, Any] | None = None, every: float = 0.005
) -> Iterator[Watched]:
    """Give a running Millpond whose event loop is sampled every so many seconds."""
    with (
        workdir("ours") as root,
        _started(Watched(root, upstream, extra or {}, every)) as server,
    ):
        yield server


@contextmanager
def _started(server: Ours) -> Iterator[Any]:
    server.start()
    try:
        yield server
    finally:
        server.stop()
