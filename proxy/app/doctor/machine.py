"""The cache directory, descriptors and the port of this machine."""

import errno
import os
import resource
import socket
import ssl
import time
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Final

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from proxy.app.descriptors import descriptor_limits
from proxy.app.doctor.results import Finding, failed, ok, skipped, warning
from proxy.app.validation import validate_writable
from proxy.core.errors import ConfigError
from proxy.core.tolerant_json import read_object
from proxy.core.units import show_size
from proxy.settings import Settings

TRIAL_BYTES: Final = 8 * 1024 * 1024
TRIAL_SYNCS: Final = 8
_SMALL: Final = 4096

SLOW_SYNC: Final = 0.1
"""Seconds of one fsync. Every blob takes one, so this bounds how many small ones a second takes."""

SLOW_RATE: Final = 20_000_000
"""Bytes per second."""

FEW_CLIENTS: Final = 100
FEW_INODES: Final = 10_000
ANSWER_SECONDS: Final = 3.0
_STATS_BYTES: Final = 4 * 1024 * 1024


class Machine:
    """The checks of this machine, by the settings of the server."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._path = settings.storage.path

    def permissions(self) -> Finding:
        """Check that this user may write, and that others may not."""
        try:
            validate_writable(self._settings)
        except ConfigError as error:
            return failed(
                str(error), f"run this as the user of the server, or: chown USER {self._path}"
            )
        if not self._path.exists():
            return ok(f"{self._path} is not there yet; the first start creates it")
        mode = self._path.stat().st_mode & 0o777
        if mode & 0o022:
            return warning(
                f"{self._path} has mode {mode:o}, so others may write", f"chmod 700 {self._path}"
            )
        return ok(f"{self._path} can be written, mode {mode:o}")

    def space(self) -> Finding:
        """Compare the free space with ``max_size`` and ``min_free``."""
        status = os.statvfs(_nearest(self._path))
        free, total = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
        storage = self._settings.storage
        wanted, kept_free = storage.max_size.of(total), storage.min_free.of(total)
        text = f"{show_size(free)} of {show_size(total)} are free"
        if free < kept_free:
            return failed(
                f"{text}, less than min_free ({show_size(kept_free)}), so little is cached",
                "delete other files on this file system, or lower storage.min_free",
            )
        if status.f_files and status.f_favail < FEW_INODES:
            return failed(
                f"only {status.f_favail:,} files can be created", "free inodes: delete small files"
            )
        if wanted > total - kept_free:
            return warning(
                f"{text}; storage.max_size is {show_size(wanted)}",
                "lower storage.max_size, or write it as a share, such as 80%",
            )
        return ok(text)

    def disk(self) -> Finding:
        """Measure writing and fsync, with a file that has no name."""
        path = _nearest(self._path)
        if not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
            return skipped(f"{path} cannot be written")
        rate, sync = _measured(path)
        text = f"it writes {show_size(int(rate))}/s, and one fsync takes {sync * 1000:.1f} ms"
        if rate < SLOW_RATE or sync > SLOW_SYNC:
            return warning(text, "pulls that miss wait for it: use a faster disk for storage.path")
        return ok(text)

    def descriptors(self) -> Finding:
        """Compute how many clients the limit of open files allows."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        most = descriptor_limits(hard, self._settings.most_downloads).clients
        text = f"{hard:,} open files allow {most:,} clients at a time"
        if most < FEW_CLIENTS:
            return failed(
                text, "raise the limit: LimitNOFILE=65536 for systemd, or ulimit -n 65536"
            )
        return ok(f"{text} (the limit of this process)")

    async def port(self) -> Finding:
        """Try to listen; if the port is in use, check if a Millpond uses it."""
        settings = self._settings
        if settings.port == 0:
            return skipped("port 0: the system chooses one")
        try:
            _listen(settings.host, settings.port)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return await self._taken()
            remedy = "choose another address with listen"
            if error.errno == errno.EACCES:
                remedy = "choose a port above 1023, or give the server CAP_NET_BIND_SERVICE"
            return failed(f"{settings.listen}: {error.strerror}", remedy)
        return ok(f"{settings.listen} is free; no server runs there")

    async def _taken(self) -> Finding:
        """Return the finding for a port that is in use."""
        version = await self._version()
        if version is not None:
            return ok(f"Millpond {version} answers at {self._settings.listen}")
        return failed(
            f"another program listens at {self._settings.listen}",
            "stop it, or choose another port with listen; "
            f"to find it: ss -ltnp 'sport = :{self._settings.port}'",
        )

    async def _version(self) -> str | None:
        """Return the version of the Millpond on the port, None if it is no Millpond."""
        settings = self._settings
        host = settings.host
        if host in ("0.0.0.0", "::"):  # noqa: S104 - what clients of this machine use instead
            host = "127.0.0.1" if host == "0.0.0.0" else "::1"  # noqa: S104
        shown = f"[{host}]" if ":" in host else host
        url = f"{'https' if settings.tls else 'http'}://{shown}:{settings.port}/-/stats"
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connector, timeout = TCPConnector(ssl=context), ClientTimeout(total=ANSWER_SECONDS)
        with suppress(ClientError, TimeoutError, OSError):
            async with (
                ClientSession(connector=connector, timeout=timeout) as session,
                session.get(url, allow_redirects=False) as response,
            ):
                document = read_object(await response.content.read(_STATS_BYTES))
                if response.status == 200 and "upstreams" in document:
                    return str(document.get("version"))[:40]
        return None


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest directory above it that exists."""
    return next(part for part in (path, *path.parents) if part.exists())


def _listen(host: str, port: int) -> None:
    """Bind and listen for a moment. Raises ``OSError``."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        trial.bind((host, port))
        trial.listen()


def _measured(path: Path) -> tuple[float, float]:
    """Return bytes per second of one large write with fsync, and seconds of a small one."""
    with TemporaryFile(dir=path, buffering=0) as file:
        data = os.urandom(1024 * 1024)
        began = time.perf_counter()
        for _ in range(TRIAL_BYTES // len(data)):
            file.write(data)
        os.fsync(file.fileno())
        rate = TRIAL_BYTES / (time.perf_counter() - began)
        times = []
        for _ in range(TRIAL_SYNCS):
            began = time.perf_counter()
            file.write(data[:_SMALL])
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return rate, sorted(times)[len(times) // 2]
