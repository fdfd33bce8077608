"""The configured sources of users: files, issuers and certificates."""

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from proxy.access import api_tokens, htpasswd
from proxy.access.api_tokens import APITokens
from proxy.access.files import decoded
from proxy.access.htpasswd import Users
from proxy.access.identity import Certificate
from proxy.access.jwks import JWKS, Fetch
from proxy.access.logins import Login
from proxy.access.oidc import Issuer
from proxy.access.principals import Method
from proxy.core.errors import ConfigError
from proxy.runtime.executors import in_thread
from proxy.runtime.watched_file import WatchedFile
from proxy.settings.access import Access, OIDCIssuer

FetchFor = Callable[[OIDCIssuer], Fetch]
"""Returns what fetches the documents of an issuer. Raises ``ConfigError``."""

MAX_NAME: Final = 256


@dataclass(frozen=True, slots=True)
class Sources:
    """The sources of users; None for what is not configured."""

    users: WatchedFile[Users] | None = None
    tokens: WatchedFile[APITokens] | None = None
    issuers: tuple[Issuer, ...] = ()
    certificate_user: str | None = None
    """The name in a client certificate that is the user: cn, email, dns or uri."""

    def has_changed(self) -> bool:
        """Return True if a file is newer than its content here."""
        users, tokens = self.users, self.tokens  # runs for each request, so it avoids a generator
        return (users is not None and users.has_changed()) or (
            tokens is not None and tokens.has_changed()
        )

    async def reload(self) -> None:
        """Read the files that have changed."""
        await asyncio.gather(*(in_thread(file.refresh) for file in self._files()))

    async def close(self) -> None:
        """Stop fetching keys of issuers."""
        for issuer in self.issuers:
            await issuer.close()

    def is_current(self, login: Login) -> bool:
        """Return True if the credential behind a token of ours is still the same and valid."""
        match login.method:
            case Method.PASSWORD:
                users = self.users and self.users.value
                return bool(users and users.fingerprint(login.user or "") == login.fingerprint)
            case Method.TOKEN:
                tokens = self.tokens and self.tokens.value
                found = tokens and tokens.by_name.get(login.credential_id or "")
                return bool(
                    found and found.fingerprint == login.fingerprint and not found.has_expired
                )
            case Method.OIDC:
                return any(issuer.fingerprint == login.fingerprint for issuer in self.issuers)
            case _:
                return login.user is None

    def has_user(self, name: str) -> bool:
        """Return True if the htpasswd file has this user."""
        return self.users is not None and self.users.value.fingerprint(name) is not None

    def certificate_name(self, certificate: Certificate | None) -> str | None:
        """Return the user that a client certificate names, None without one.

        A certificate with several names of the kind is ignored, because the user is ambiguous.
        """
        if certificate is None:
            return None
        names: tuple[str, ...]
        match self.certificate_user:
            case "cn":
                names = (certificate.common_name or "",)
            case "email":
                names = certificate.emails
            case "dns":
                names = certificate.dns
            case "uri":
                names = certificate.uris
            case _:
                return None
        usable = len(names) == 1 and 0 < len(names[0]) <= MAX_NAME and names[0].isprintable()
        return names[0] if usable else None

    def _files(self) -> Iterator[WatchedFile[Any]]:
        return (file for file in (self.users, self.tokens) if file is not None)


def open_sources(access: Access, fetch_for: FetchFor, before: Sources | None = None) -> Sources:
    """Return the sources that the settings name. Raises ``ConfigError``.

    The keys of an issuer outlast a reload: it may be down. ``before`` are the sources until then.
    """
    certificates = access.client_certificates
    known = {} if before is None else {issuer.url: issuer.keys for issuer in before.issuers}
    return Sources(
        users=users_of(access),
        tokens=tokens_of(access),
        issuers=tuple(
            Issuer(issuer, JWKS(issuer.issuer, fetch_for(issuer), known.get(issuer.issuer)))
            for issuer in access.oidc
        ),
        certificate_user=None if certificates is None else certificates.user,
    )


def users_of(access: Access) -> WatchedFile[Users] | None:
    """Return the users of the htpasswd file. Raises ``ConfigError``."""
    return _file("access.htpasswd_file", access.htpasswd_file, htpasswd.parse)


def tokens_of(access: Access) -> WatchedFile[APITokens] | None:
    """Return the tokens of the tokens file. Raises ``ConfigError``."""
    return _file("access.tokens_file", access.tokens_file, api_tokens.parse)


def _file(
    key: str, path: Path | None, parse: Callable[[str, Path], Any]
) -> WatchedFile[Any] | None:
    if path is None:
        return None
    try:
        return WatchedFile(path, lambda content: parse(decoded(content, path), path))
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from None
