"""Credentials for Azure Container Registry, by azure-identity.

A token of Entra ID is exchanged for a refresh token of the registry (Azure/acr
``docs/AAD-OAuth.md``), which its token server takes as the password of a user of zeros.
"""

import base64
import binascii
import os
import time
from typing import Any, Final

from proxy.core.errors import CredentialsRejected
from proxy.core.tolerant_json import read_object
from proxy.settings.upstreams import AzureCredentials
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.cloud import call, load
from proxy.upstream.credentials.renewing import Issued
from proxy.upstream.transport import TokenRequest, Transport

USERNAME: Final = "00000000-0000-0000-0000-000000000000"
_AUDIENCES: Final = {
    ".azurecr.cn": "https://management.chinacloudapi.cn",
    ".azurecr.us": "https://management.usgovcloudapi.net",
}
_AUDIENCE: Final = "https://containerregistry.azure.net"


class Azure:
    """Refresh tokens of the registry behind ``transport``, for an identity of this machine.

    The identity is that of the environment, of the workload, or managed.
    """

    def __init__(self, transport: Transport, settings: AzureCredentials) -> None:
        self._transport = transport
        self._client_id = settings.client_id

    async def fetch(self) -> Issued[Credential | None]:
        """Return a new refresh token. Raises ``CredentialsRejected``."""
        token = await call("Azure", self._entra_token)
        url = self._transport.url.origin()
        form = {"grant_type": "access_token", "service": url.host or "", "access_token": token}
        response, body = await self._transport.fetch_token(
            TokenRequest(url / "oauth2" / "exchange", form=form)
        )
        if response.status != 200:
            raise CredentialsRejected(f"{url.host} answers {response.status} to a token exchange")
        refresh_token = read_object(body).get("refresh_token")
        if not isinstance(refresh_token, str) or not refresh_token:
            raise CredentialsRejected(f"{url.host} answers a token exchange without a token")
        return Issued(Credential(USERNAME, refresh_token), _life(refresh_token))

    def _entra_token(self) -> str:
        host = self._transport.url.host or ""
        audience = next((a for end, a in _AUDIENCES.items() if host.endswith(end)), _AUDIENCE)
        identity = load("azure", "azure.identity")
        with identity.ChainedTokenCredential(*self._identities(identity)) as chain:
            token: str = chain.get_token(f"{audience}/.default").token
        return token

    def _identities(self, identity: Any) -> list[Any]:
        """Return the identities to try. None of them runs a program or asks a person."""
        identities = [
            identity.EnvironmentCredential(),
            identity.ManagedIdentityCredential(client_id=self._client_id),
        ]
        if "AZURE_FEDERATED_TOKEN_FILE" in os.environ:
            identities.insert(1, identity.WorkloadIdentityCredential(client_id=self._client_id))
        return identities


def _life(token: str) -> float | None:
    """Return the seconds until ``exp`` of a JWT (RFC 7519 §4.1.4), None if it has none."""
    payload = token.partition(".")[2].partition(".")[0]
    try:
        claims = read_object(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError):
        return None
    expiry = claims.get("exp")
    return expiry - time.time() if isinstance(expiry, int | float) else None
