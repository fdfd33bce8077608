"""Opens the listening sockets: TCP for clients, a Unix socket for the operator."""

import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

from proxy.core.errors import ConfigError
from proxy.settings import Settings
from proxy.storage.directory import Directory, remove

BACKLOG: Final = 1024
ADMIN_SOCKET: Final = "admin.sock"
WORKERS_SOCKET: Final = "workers.sock"


def public(settings: Settings) -> socket.socket:
    """Return a TCP socket that listens on ``settings.listen``. Raises ``ConfigError``."""
    return _listening(settings, settings.port, is_shared=False)


def for_processes(settings: Settings) -> list[socket.socket]:
    """Return the sockets that listen on ``settings.listen``, one for each process.

    The kernel divides connections among the sockets. It would also let another Millpond of this
    user share the port, so the function first checks for one. Raises ``ConfigError``.
    """
    listeners = [public(settings)]
    if settings.processes == 1:
        return listeners
    with listeners.pop() as trial:
        port = trial.getsockname()[1]
    try:
        for _ in range(settings.processes):
            listeners.append(_listening(settings, port, is_shared=True))  # noqa: PERF401 - see below
    except ConfigError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listening(settings: Settings, port: int, *, is_shared: bool) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server(
            (settings.host, port),
            family=family,
            backlog=BACKLOG,
            reuse_port=is_shared,
            dualstack_ipv6=settings.host == "::",
        )
    except OSError as error:
        raise ConfigError(
            f"listen: {settings.listen} cannot be listened on: {error.strerror or error}; "
            "choose another address with --listen HOST:PORT"
        ) from None


def address(listener: socket.socket) -> str:
    """Return HOST:PORT of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@contextmanager
def admin(directory: Directory) -> Iterator[socket.socket]:
    """Listen on ``admin.sock`` in the cache's directory. Raises ``ConfigError``."""
    with _private(
        directory, ADMIN_SOCKET, "admin.socket", "; switch it off with admin: {socket: false}"
    ) as listener:
        yield listener


@contextmanager
def internal(directory: Directory) -> Iterator[socket.socket]:
    """Listen on ``workers.sock`` in the cache's directory. Raises ``ConfigError``."""
    with _private(directory, WORKERS_SOCKET, "workers", "") as listener:
        yield listener


@contextmanager
def _private(directory: Directory, name: str, setting: str, advice: str) -> Iterator[socket.socket]:
    """Listen in the cache's directory, with permissions for this user only.

    The path goes through the directory's descriptor, because a socket's path has at most 107 bytes.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove(name, directory.fd)
        listener.bind(f"/proc/self/fd/{directory.fd}/{name}")
        os.chmod(name, stat.S_IRUSR | stat.S_IWUSR, dir_fd=directory.fd)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{setting}: {directory.root / name} cannot be listened on: {error.strerror}{advice}"
        ) from None
    try:
        yield listener
    finally:
        listener.close()
        with suppress(OSError):  # the next start removes it
            remove(name, directory.fd)
