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


def public(settings: Settings) -> socket.socket:
    """Return a TCP socket that listens on ``settings.listen``. Raises ``ConfigError``."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server(
            (settings.host, settings.port),
            family=family,
            backlog=BACKLOG,
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
    """Listen on ``admin.sock`` in the cache's directory, with permissions for this user only.

    The path goes through the directory's descriptor, because a socket's path has at most 107 bytes.
    Raises ``ConfigError``.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove(ADMIN_SOCKET, directory.fd)
        listener.bind(f"/proc/self/fd/{directory.fd}/{ADMIN_SOCKET}")
        os.chmod(ADMIN_SOCKET, stat.S_IRUSR | stat.S_IWUSR, dir_fd=directory.fd)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"admin.socket: {directory.root / ADMIN_SOCKET} cannot be listened on: "
            f"{error.strerror}; switch it off with admin: {{socket: false}}"
        ) from None
    try:
        yield listener
    finally:
        listener.close()
        with suppress(OSError):  # the next start removes it
            remove(ADMIN_SOCKET, directory.fd)
