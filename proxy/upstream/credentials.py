"""Who we are to an upstream. How a registry wants to hear it is the job of ``auth``."""

import asyncio
import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from proxy.core.errors import CredentialsRejected


@dataclass(frozen=True, slots=True)
class Credential:
    """A user name and a password, which ``repr`` leaves out."""

    username: str
    password: str = field(repr=False)

    @property
    def basic(self) -> str:
        """The value of ``Authorization`` for the scheme Basic (RFC 7617 §2)."""
        pair = f"{self.username}:{self.password}"
        return f"Basic {base64.b64encode(pair.encode()).decode()}"


class Credentials(Protocol):
    """The source of the credential for one upstream. It is asked before each use."""

    async def get(self) -> Credential | None:
        """Return the credential, None for anonymous access. Raises ``CredentialsRejected``."""


@dataclass(frozen=True, slots=True)
class Static:
    """A credential from the configuration, or None for anonymous access."""

    credential: Credential | None = None

    async def get(self) -> Credential | None:
        """Return the configured credential."""
        return self.credential


@dataclass(frozen=True, slots=True)
class PasswordFile:
    """A password in a file that another program may renew at any time."""

    username: str
    file: Path

    async def get(self) -> Credential:
        """Return the current content of the file as the password, without a final newline."""
        try:
            text = await asyncio.to_thread(self.file.read_text)
        except (OSError, UnicodeDecodeError) as error:
            raise CredentialsRejected(f"password_file {self.file} cannot be read") from error
        return Credential(self.username, text.rstrip("\n"))
