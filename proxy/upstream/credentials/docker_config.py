"""Credentials from Docker's ``config.json`` or containers' ``auth.json``.

Sources: docker/cli ``configfile/file.go``, containers-auth.json(5), and for the order of keys
go-containerregistry ``authn/keychain.go``: the full repository first, its parents, then the host.
For each of them ``credHelpers`` is asked before ``credsStore``, and that before ``auths``.
"""

import asyncio
import base64
import binascii
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from yarl import URL

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials import IDENTITY_TOKEN, Credential, host_of, path_of, read_text
from proxy.upstream.credentials.helper import ask_helper
from proxy.upstream.credentials.program import Program
from proxy.upstream.credentials.renewing import RenewingCache

HUB: Final = "https://index.docker.io/v1/"
_HUB_HOSTS: Final = frozenset({"registry-1.docker.io", "index.docker.io", "docker.io"})
_HUB_KEYS: Final = (HUB, "index.docker.io", "docker.io", "registry-1.docker.io")


class DockerConfig:
    """The entries of a file for the registry at ``url``; the file is read again when it changes."""

    kind: Final = "docker_config"

    def __init__(self, file: Path, url: URL) -> None:
        self._file = file
        self._url = url
        self._stamp: object = None
        self._document: dict[str, Any] = {}
        self._helpers: RenewingCache[Credential | None] = RenewingCache(self.kind)

    async def get(self, repository: str) -> Credential | None:
        """Return the credential of the most specific key, None if there is none."""
        document = await asyncio.to_thread(self._read)
        for key in self._keys(repository):
            helper = _helper(document, key)
            if helper is not None:
                ask = partial(ask_helper, helper, key)
                found = await self._helpers.get((helper.name, key), ask)
                if found is not None:
                    return found
            if entry := _section(document, "auths").get(key):
                return self._decoded(key, entry)
        return None

    async def renew(self, repository: str, refused: Credential) -> Credential | None:
        """Return the credential from the current file; a helper is run again."""
        document = await asyncio.to_thread(self._read)
        for key in self._keys(repository):
            if helper := _helper(document, key):
                ask = partial(ask_helper, helper, key)
                await self._helpers.renew((helper.name, key), ask, refused)
        return await self.get(repository)

    @property
    def expires_in(self) -> float | None:
        """Seconds until a helper is asked again."""
        return self._helpers.expires_in

    async def close(self) -> None:
        """Cancel running helpers."""
        await self._helpers.close()

    def _keys(self, repository: str) -> Iterator[str]:
        """Yield the keys that may stand for a repository, the most specific first."""
        is_hub = self._url.host in _HUB_HOSTS
        host = "docker.io" if is_hub else host_of(self._url)
        path = path_of(self._url, repository)
        while path:
            yield f"{host}/{path}"
            path = path.rpartition("/")[0]
        yield from _HUB_KEYS if is_hub else (host, f"https://{host}", f"https://{host}/v1/")

    def _read(self) -> dict[str, Any]:
        """Return the file's document, parsed again if the file has changed."""
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino, status.st_size)
            if stamp != self._stamp:
                self._document = parse(read_text(self._file, "docker_config"))
                self._stamp = stamp
        except OSError:
            raise CredentialsRejected(f"docker_config {self._file} cannot be read") from None
        except ValueError as error:
            raise CredentialsRejected(f"docker_config {self._file} {error}") from None
        return self._document

    def _decoded(self, key: str, entry: object) -> Credential:
        """Return the credential of an entry of ``auths``. Raises ``CredentialsRejected``.

        ``auth`` divides at the first colon; old versions of Docker end it with zero bytes.
        """
        if isinstance(entry, dict):
            if isinstance(token := entry.get("identitytoken"), str) and token:
                return Credential(IDENTITY_TOKEN, token)
            username, password = entry.get("username"), entry.get("password")
            if isinstance(auth := entry.get("auth"), str) and auth:
                try:
                    pair = base64.b64decode(auth, validate=True).decode()
                except (binascii.Error, UnicodeDecodeError):
                    pair = ""
                username, _, password = pair.partition(":")
                password = password.rstrip("\0")
            if isinstance(username, str) and isinstance(password, str) and username and password:
                return Credential(username, password)
        raise CredentialsRejected(f"docker_config {self._file}: the entry for {key} needs a login")


def parse(text: str) -> dict[str, Any]:
    """Return the document of a file. Raises ``ValueError``, whose message does not quote it."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise ValueError("is not a JSON object")  # noqa: TRY004 - the text is wrong, not its type
    return document


def server_of(url: URL) -> str:
    """Return how Docker names the registry at ``url``, for helpers."""
    return HUB if url.host in _HUB_HOSTS else host_of(url)


def _helper(document: dict[str, Any], key: str) -> Program | None:
    """Return the helper program for a key, None if there is none.

    ``credsStore`` is asked for servers only: it knows nothing of repositories.
    """
    store = document.get("credsStore") if "/" not in key or key == HUB else None
    suffix = _section(document, "credHelpers").get(key, store)
    if not isinstance(suffix, str) or not suffix or os.sep in suffix:
        return None
    return Program((f"docker-credential-{suffix}", "get"), {})


def _section(document: dict[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name)
    return section if isinstance(section, dict) else {}
