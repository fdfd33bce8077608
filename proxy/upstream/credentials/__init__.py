"""The credentials for an upstream; ``auth`` sends them.

Each source of credentials is one module; ``choosing`` builds the one that is configured. Sources
raise ``CredentialsRejected``, with messages that name programs, files and statuses, but never quote
the output of a program, a file or a cloud, which may contain a secret.
"""

import asyncio
import base64
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from yarl import URL

from proxy.core.errors import CredentialsRejected

IDENTITY_TOKEN: Final = "<token>"  # noqa: S105 - a mark, no secret
"""User name that marks an identity token (docker-credential-helpers, README)."""

MAX_FILE: Final = 1024 * 1024
"""Bytes of a file with credentials."""


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

    @property
    def is_identity_token(self) -> bool:
        """The password is a refresh token for the token server (Distribution, oauth.md)."""
        return self.username == IDENTITY_TOKEN


class Credentials(Protocol):
    """The source of the credentials for one upstream. It is asked before each use."""

    @property
    def kind(self) -> str:
        """Name of the source, as in the settings: ``aws``."""

    async def get(self, repository: str) -> Credential | None:
        """Return the credential, None for anonymous access. Raises ``CredentialsRejected``.

        ``repository`` is empty for a request that concerns none.
        """

    async def renew(self, repository: str, refused: Credential) -> Credential | None:
        """Return a credential in place of one that upstream refused with 401.

        The same one, or None, if there is no other.
        """

    @property
    def expires_in(self) -> float | None:
        """Seconds until the first credential expires, None if none does."""

    async def close(self) -> None:
        """Cancel running work."""


class PermanentCredentials:
    """Base of sources without expiry and renewal."""

    __slots__ = ()

    expires_in: float | None = None

    async def renew(self, repository: str, refused: Credential) -> Credential | None:
        """Return the refused credential: there is no other."""
        return refused

    async def close(self) -> None:
        """Do nothing: nothing runs."""


@dataclass(frozen=True, slots=True)
class StaticCredentials(PermanentCredentials):
    """A credential from the configuration, or None for anonymous access."""

    credential: Credential | None = None
    kind: str = "none"

    async def get(self, repository: str) -> Credential | None:
        """Return the configured credential."""
        return self.credential


@dataclass(frozen=True, slots=True)
class PasswordFile(PermanentCredentials):
    """A password in a file that another program may renew at any time."""

    username: str
    file: Path
    kind: str = "password_file"

    async def get(self, repository: str) -> Credential:
        """Return the current content of the file as the password, without a final newline."""
        text = await asyncio.to_thread(read_text, self.file, "password_file")
        return Credential(self.username, text.rstrip("\n"))


def host_of(url: URL) -> str:
    """Return a registry's host as in the names of images: with its port, if that is not usual."""
    return url.host_port_subcomponent or ""


def path_of(url: URL, repository: str) -> str:
    """Return a repository behind the path of the registry's URL."""
    return f"{url.path.strip('/')}/{repository}".strip("/")


def read_text(file: Path, setting: str) -> str:
    """Return a file's text, cut at ``MAX_FILE`` characters. Raises ``CredentialsRejected``."""
    try:
        with file.open() as opened:
            return opened.read(MAX_FILE)
    except (OSError, UnicodeDecodeError) as error:
        raise CredentialsRejected(f"{setting} {file} cannot be read") from error
