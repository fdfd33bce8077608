"""Authorizes requests with the logins of clients: tokens and refusals are per client."""

from proxy.core.errors import Denied, LoginRejected, UpstreamFailure
from proxy.runtime.client_key import CLIENT_KEY
from proxy.upstream.auth import Authorizer


class CallerAuthorizer(Authorizer):
    """An ``Authorizer`` for ``CallerCredentials``."""

    login = "your login"

    @property
    def identity(self) -> str:
        """The key of the client that asks."""
        return CLIENT_KEY.get()

    def _rejected(self, text: str) -> UpstreamFailure | Denied:
        """Return an error for the client: the upstream works for others."""
        return LoginRejected(text)
