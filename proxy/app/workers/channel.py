"""Messages between the main process and a worker, over a private socket.

The worker gets the parsed settings of the main process, with their secrets. It sends only JSON, so
that the main process need not trust it.
"""

import asyncio
import pickle
import socket
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proxy.settings import Settings

MAX_FRAME: Final = 32 * 1024 * 1024
_LENGTH: Final = struct.Struct("!I")


@dataclass(frozen=True, slots=True)
class ActiveSettings:
    """Settings, and their number in ``Generations``.

    The main process answers for the upstreams of ``switched``: the operator has changed their
    offline mode without the settings.
    """

    settings: Settings
    number: int
    switched: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Start:
    """The first message to a worker."""

    active: ActiveSettings
    index: Path
    relayed: int
    """Maximum number of concurrent relayed requests."""
    is_json: bool
    """The log is in JSON."""
    is_terminal: bool
    """The log is a terminal."""
    reports_pulls: bool
    """The initial value of ``Watch``."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Accept no more connections, and exit; running responses have ``grace`` seconds."""

    grace: float


@dataclass(frozen=True, slots=True)
class Watch:
    """Report pulls from now on, or no longer."""

    reports_pulls: bool


Command = Start | ActiveSettings | Stop | Watch


class Channel:
    """One end of the socket. Close it when done."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def from_socket(cls, end: socket.socket) -> "Channel":
        """Return the channel over one end of a socket pair."""
        end.setblocking(False)  # noqa: FBT003 - the standard library's own
        return cls(*await asyncio.open_unix_connection(sock=end))

    async def send(self, frame: bytes) -> None:
        """Send a frame, at the pace of the other end. Raises ``OSError``."""
        if self._writer.is_closing():
            raise ConnectionResetError("the other end is closed")
        self._writer.write(_LENGTH.pack(len(frame)))
        self._writer.write(frame)
        await self._writer.drain()

    async def send_command(self, command: Command) -> None:
        """Send a command to a worker. Raises ``OSError``."""
        await self.send(pickle.dumps(command))

    async def receive_command(self) -> Any:
        """Return the next ``Command`` of the main process, None once it has ended."""
        frame = await self.receive()
        return None if frame is None else pickle.loads(frame)  # noqa: S301 - of our own parent

    async def receive(self) -> bytes | None:
        """Return the next frame, None once the other end is closed.

        Raises ``ValueError`` for one that is longer than ``MAX_FRAME``.
        """
        try:
            (length,) = _LENGTH.unpack(await self._reader.readexactly(_LENGTH.size))
            if length > MAX_FRAME:
                raise ValueError(f"a frame of {length} bytes")
            return await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, OSError):
            return None

    def close(self) -> None:
        """Close this end."""
        self._writer.close()
