"""Credentials for Artifact Registry and Container Registry, by google-auth.

Application Default Credentials (https://google.aip.dev/auth/4110): key file, workload identity
federation, metadata server. The registry takes an access token as the password.
"""

import time
from datetime import UTC
from pathlib import Path
from typing import Any, Final

from proxy.core.errors import CredentialsRejected
from proxy.core.tolerant_json import read_object
from proxy.settings.upstreams import GoogleCredentials
from proxy.upstream.credentials import Credential, read_text
from proxy.upstream.credentials.cloud import call, load
from proxy.upstream.credentials.renewing import Issued

USERNAME: Final = "oauth2accesstoken"
SCOPES: Final = ("https://www.googleapis.com/auth/cloud-platform",)


class Google:
    """Access tokens of the key file of the settings, else of the default credentials."""

    def __init__(self, settings: GoogleCredentials) -> None:
        self._file = settings.key_file

    async def fetch(self) -> Issued[Credential | None]:
        """Return a new access token. Raises ``CredentialsRejected``."""
        return await call("Google", self._fetch)

    def _fetch(self) -> Issued[Credential | None]:
        requests = load("google", "google.auth.transport.requests")
        if self._file is None:
            credentials, _ = load("google", "google.auth").default(scopes=SCOPES)
        else:
            credentials = _from_file(self._file)
        credentials.refresh(requests.Request())
        if not credentials.token:
            raise CredentialsRejected("Google gives no access token")
        expiry = credentials.expiry  # UTC without a time zone
        life = None
        if expiry is not None:
            life = expiry.replace(tzinfo=UTC).timestamp() - time.time()
        return Issued(Credential(USERNAME, credentials.token), life)


def _from_file(file: Path) -> Any:
    """Return the credentials in a file. Raises ``CredentialsRejected`` for an unknown type.

    Each type has its own loader; the general one is deprecated, as it also runs programs.
    """
    information = read_object(read_text(file, "key_file").encode())
    match information.get("type"):
        case "service_account":
            loader = load("google", "google.oauth2.service_account").Credentials
            return loader.from_service_account_info(information, scopes=SCOPES)
        case "external_account":
            loader = load("google", "google.auth.identity_pool").Credentials
            return loader.from_info(information, scopes=SCOPES)
        case _:
            raise CredentialsRejected(
                f"key_file {file} is neither a service account's key nor an external account"
            )
