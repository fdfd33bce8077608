"""Finds the server of a command, and ends the command with its exit status.

It is the server at the address of ``--server``, or the one on the admin socket of the cache. If no
server uses the cache, the command runs the proxy itself, without a public port, until it ends.
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
from proxy.cli.client import Client, ErrorAnswer, NoAnswer, connected
from proxy.cli.command import ServerOptions, Work
from proxy.cli.formatting import fail, print_error
from proxy.core.errors import ConfigError, StorageInUse
from proxy.runtime import logs
from proxy.settings import Settings, loading

SOCKET: Final = "admin.sock"
SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path without its final zero, unix(7)
ATTEMPTS: Final = 10
PAUSE: Final = 0.3


def run(options: ServerOptions, work: Work) -> NoReturn:
    """Do ``work`` with a server and exit with the status that it returns.

    A wrong setting, a refusal, or a server that does not answer is one line and status 2. SIGINT
    and SIGTERM cancel the work: 130 and 143. So does a closed pipe: 141.
    """
    signals: list[int] = []
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            status = runner.run(_work(options, work, signals))
    except asyncio.CancelledError:
        if not signals:
            raise
        status = 128 + signals[0]
    except (BrokenPipeError, ConnectionResetError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's last flush
        status = 128 + signal.SIGPIPE
    except (ConfigError, ErrorAnswer, NoAnswer) as error:
        fail(str(error))
    raise typer.Exit(status)


async def _work(options: ServerOptions, work: Work, signals: list[int]) -> int:
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task is not None

    def stop(number: int) -> None:
        signals.append(number)
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    open_client = at_address if options.server is not None else beside_cache
    async with open_client(options) as client:
        return await work(client)


@asynccontextmanager
async def at_address(options: ServerOptions) -> AsyncIterator[Client]:
    """Open a client of the server that ``--server`` names. Raises ``ConfigError``."""
    assert options.server is not None
    if options.config is not None or options.storage is not None:
        raise ConfigError("--server: another place than --config and --storage name")
    token, url = _token(options.token_file), _address(options.server)
    connector = TCPConnector(ssl=_trust(options.ca_file)) if options.ca_file is not None else None
    async with connected(connector, url, options.server, token) as client:
        yield client


@asynccontextmanager
async def beside_cache(options: ServerOptions) -> AsyncIterator[Client]:
    """Open a client of the server that has the cache. Raises ``ConfigError``."""
    if options.token_file is not None:
        raise ConfigError("--token-file: goes with --server only; the socket needs no token")
    if options.ca_file is not None:
        raise ConfigError("--ca-file: goes with --server only; the socket has no certificate")
    flags: dict[str, Any] = {"admin": {"socket": True}}
    if options.storage is not None:
        flags["storage"] = {"path": str(options.storage)}
    settings = loading.load(options.config, flags, print_error)
    open_client = on_cache if options.may_start else on_running
    async with open_client(settings) as client:
        yield client


@asynccontextmanager
async def on_running(settings: Settings) -> AsyncIterator[Client]:
    """Open a client of the server on the cache's socket. Raises ``ConfigError`` without one."""
    async with AsyncExitStack() as stack:
        client = await _on_socket(stack, settings.storage.path)
        if client is None:
            raise ConfigError(f"{settings.storage.path}: no server has this cache; start one first")
        yield client


@asynccontextmanager
async def on_cache(settings: Settings) -> AsyncIterator[Client]:
    """Open a client of the server on the cache's socket; start one if no server has the cache."""
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
                await asyncio.sleep(PAUSE)  # that process may still be starting
        else:
            raise ConfigError(f"{storage}: nothing listens on its {SOCKET}")
        yield client


async def _on_socket(stack: AsyncExitStack, storage: Path) -> Client | None:
    """Return a client of the server on the cache's socket, None if there is no server."""
    path = storage / SOCKET
    address = str(path)
    if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
        try:
            directory = os.open(storage, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            check_absent(storage, error.errno)
            return None
        stack.callback(os.close, directory)
        address = f"/proc/self/fd/{directory}/{SOCKET}"
    client = await stack.enter_async_context(
        connected(UnixConnector(address), URL("http://millpond"), str(path))
    )
    try:
        await client.probe()
    except NoAnswer as error:
        if error.errno is None:
            raise ConfigError(
                f"{storage}: in use by another process, which does not answer on its {SOCKET}"
            ) from None
        check_absent(storage, error.errno)
        return None
    return client


def check_absent(storage: Path, reason: int | None) -> None:
    """Return if ``reason`` (an errno) means that no server listens. Raises ``ConfigError``."""
    if reason in (errno.ENOENT, errno.ENOTDIR, errno.ECONNREFUSED):
        return
    hint = "; run this as the user whose cache it is" if reason == errno.EACCES else ""
    raise ConfigError(f"{storage}: cannot be reached: {os.strerror(reason or 0)}{hint}")


async def _start(stack: AsyncExitStack, settings: Settings) -> None:
    """Run the proxy without its public port until ``stack`` closes. Raises ``ConfigError``."""
    _check_cache(settings.storage.path)
    stream = sys.stderr
    output = logs.configure("critical", settings.log.format, stream)  # its answers have the errors
    await stack.enter_async_context(running(settings, output, is_public=False))


def _check_cache(storage: Path) -> None:
    """Refuse to create a cache, and to leave files in one that its owner could not read."""
    try:
        owner = (storage / "oci-layout").stat().st_uid
    except FileNotFoundError:
        raise ConfigError(
            f"{storage}: there is no cache here; name its directory with --storage DIR"
        ) from None
    except OSError as error:
        check_absent(storage, error.errno)
        raise ConfigError(f"{storage}: there is no cache here") from None
    if owner != os.geteuid():
        raise ConfigError(f"{storage}: belongs to uid {owner}; run this as that user")


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
    """Return a context that trusts the authorities in a file and those of the system."""
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
