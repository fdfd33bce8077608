"""Credentials for Artifact Registry and Container Registry, by google-auth.

Application Default Credentials (https://google.aip.dev/auth/4110): key file, workload identity
federation, metadata server. The registry takes an access token as the password.
"""

import time
from datetime import UTC
from typing import Final

from proxy.core.errors import CredentialsRejected
from proxy.settings.upstreams import GoogleCredentials
from proxy.upstream.credentials import Credential
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
        auth = load("google", "google.auth")
        requests = load("google", "google.auth.transport.requests")
        if self._file is None:
            credentials, _ = auth.default(scopes=SCOPES)
        else:
            credentials, _ = auth.load_credentials_from_file(str(self._file), scopes=SCOPES)
        credentials.refresh(requests.Request())
        if not credentials.token:
            raise CredentialsRejected("Google gives no access token")
        expiry = credentials.expiry  # UTC without a time zone
        life = None
        if expiry is not None:
            life = expiry.replace(tzinfo=UTC).timestamp() - time.time()
        return Issued(Credential(USERNAME, credentials.token), life)
