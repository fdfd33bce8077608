"""Who we are to an upstream: credentials, read anew each time they are needed."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from proxy.core.errors import CredentialsRejected


@dataclass(frozen=True, slots=True)
class Credentials:
    """A user name and its secret, which no representation shows."""

    username: str
    password: str = field(repr=False)


class Provider(Protocol):
    """Knows our credentials for one upstream."""

    async def credentials(self) -> Credentials | None:
        """Return them, or None to be anonymous. Raises ``CredentialsRejected``."""


class Anonymous:
    """Nobody."""

    async def credentials(self) -> None:
        """Return None."""
        return


@dataclass(frozen=True, slots=True)
class Static:
    """Credentials written in the configuration."""

    known: Credentials

    async def credentials(self) -> Credentials:
        """Return them."""
        return self.known


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """A password in a file that somebody else may renew."""

    username: str
    file: Path

    async def credentials(self) -> Credentials:
        """Return what the file holds now, without the final newline."""
        try:
            text = await asyncio.to_thread(self.file.read_text)
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialsRejected(f"password_file {self.file} cannot be read") from error
        return Credentials(self.username, text.rstrip("\r\n"))
