"""Finds the server that a command talks to, and ends the command with its exit status.

That is the server on the cache's socket; without one, the proxy itself for as long as the command
runs, listening on nothing else; or the one that ``--server`` names.
"""

import asyncio
import errno
import os
import signal
import ssl
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NoReturn

import typer
import uvloop
from aiohttp import TCPConnector, UnixConnector
from yarl import URL

from proxy.app import running
from proxy.cli.client import Client, connected
from proxy.cli.formatting import refuse
from proxy.cli.replies import Refused, Unanswered
from proxy.cli.server_options import ServerOptions, Work
from proxy.core.errors import ConfigError, StorageInUse
from proxy.runtime import logs
from proxy.settings import Settings, loading

SOCKET: Final = "admin.sock"
SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path without its final zero, unix(7)
ATTEMPTS: Final = 10
PAUSE: Final = 0.3


def run(door: ServerOptions, work: Work) -> NoReturn:
    """Do ``work`` with the server behind ``door`` and exit with the status that it returns.

    A wrong setting, an error of the server's or none that answers is one line and status 2.
    SIGINT and SIGTERM cancel the work: 130 and 143.
    """
    signals: list[int] = []
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(_done(door, work, signals))
    except asyncio.CancelledError:
        if not signals:
            raise
        status = 128 + signals[0]
    except (BrokenPipeError, ConnectionResetError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        status = 128 + signal.SIGPIPE
    except (ConfigError, Refused, Unanswered) as error:
        refuse(str(error))
    raise typer.Exit(status)


async def _done(door: ServerOptions, work: Work, signals: list[int]) -> int:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop(number: int) -> None:
        signals.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    async with _reached(door) as client:
        return await work(client)


@asynccontextmanager
async def _reached(door: ServerOptions) -> AsyncIterator[Client]:
    if door.server is not None:
        if door.config is not None or door.storage is not None:
            raise ConfigError("--server: another place than --config and --storage name")
        token, url = _token(door.token_file), _address(door.server)
        connector = TCPConnector(ssl=_trust(door.ca_file)) if door.ca_file is not None else None
        async with connected(connector, url, door.server, token) as client:
            yield client
        return
    if door.token_file is not None:
        raise ConfigError("--token-file: goes with --server only; the socket needs no token")
    if door.ca_file is not None:
        raise ConfigError("--ca-file: goes with --server only; the socket has no certificate")
    flags: dict[str, Any] = {"admin": {"socket": True}}
    if door.storage is not None:
        flags["storage"] = {"path": str(door.storage)}
    async with _beside(loading.load(door.config, flags)) as client:
        yield client


def _address(server: str) -> URL:
    try:
        url = URL(server)
    except ValueError:
        url = URL()
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError("--server: not an address; write https://cache.example.com")
    if url.user or url.password:
        raise ConfigError("--server: takes no credentials; put the token into --token-file FILE")
    return url


def _trust(ca_file: Path) -> ssl.SSLContext:
    """Trust the authorities in a file besides the system's."""
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError:
        raise ConfigError(f"--ca-file: {ca_file} holds no PEM certificate") from None
    except OSError as error:
        raise ConfigError(f"--ca-file: {ca_file} cannot be read: {error.strerror}") from None
    return context


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    try:
        token = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"--token-file: {file} cannot be read: {reason}") from None
    if not token.isascii() or not token.isprintable() or not token:
        raise ConfigError(f"--token-file: {file} holds no token; it is one line of ASCII text")
    return token


@asynccontextmanager
async def _beside(settings: Settings) -> AsyncIterator[Client]:
    """Open a client of the server that has the cache, be it one of our own."""
    storage = settings.storage.path
    async with AsyncExitStack() as stack:
        for attempt in range(ATTEMPTS):
            if (client := await _on_socket(stack, storage)) is not None:
                break
            try:
                await _start(stack, settings)
            except StorageInUse:
                if attempt == ATTEMPTS - 1:
                    raise ConfigError(
                        f"{storage}: in use by another process, which does not listen on its "
                        f"{SOCKET}; is admin.socket off there?"
                    ) from None
                await asyncio.sleep(PAUSE)  # it may just be starting
        else:
            raise ConfigError(f"{storage}: nothing listens on its {SOCKET}")
        yield client


async def _on_socket(stack: AsyncExitStack, storage: Path) -> Client | None:
    """Return a client of the server on the cache's socket, None if nobody listens there."""
    path = storage / SOCKET
    address = str(path)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        try:
            directory = os.open(storage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            _check_reason(storage, error.errno)
            return None
        stack.callback(os.close, directory)
        address = f"/proc/self/fd/{directory}/{SOCKET}"
    client = await stack.enter_async_context(
        connected(UnixConnector(address), URL("http://millpond"), str(path))
    )
    try:
        await client.probe()
    except Unanswered as error:
        if error.errno is None:
            raise ConfigError(
                f"{storage}: in use by another process, which does not answer on its {SOCKET}"
            ) from None
        _check_reason(storage, error.errno)
        return None
    return client


def _check_reason(storage: Path, reason: int | None) -> None:
    """Return if ``reason`` means that nobody listens. Raises ``ConfigError``."""
    if reason in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
        return
    hint = "; run this as the user whose cache it is" if reason == errno.EACCES else ""
    raise ConfigError(f"{storage}: cannot be reached: {os.strerror(reason or 0)}{hint}")


async def _start(stack: AsyncExitStack, settings: Settings) -> None:
    """Run the proxy without its public listener until ``stack`` closes."""
    _check_cache(settings.storage.path)
    stream = logs.standard_error()
    output = logs.configure("critical", settings.log.format, stream)  # answers say it
    await stack.enter_async_context(running(settings, output, is_public=False))


def _check_cache(storage: Path) -> None:
    """Refuse to make a cache where none is, or to leave files in it that its owner cannot read."""
    try:
        owner = (storage / "oci-layout").stat().st_uid
    except FileNotFoundError:
        raise ConfigError(
            f"{storage}: there is no cache here; name its directory with --storage DIR"
        ) from None
    except OSError as error:
        _check_reason(storage, error.errno)
        raise ConfigError(f"{storage}: there is no cache here") from None
    if owner != os.geteuid():
        raise ConfigError(f"{storage}: belongs to uid {owner}; run this as that user")
