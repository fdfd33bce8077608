"""Builds the identification of clients, if access is configured.

Its modules need bcrypt, PyJWT and cryptography. They are imported only then, which saves memory
without access control.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from aiohttp.web import BaseRequest, StreamResponse

from proxy.access.audit import AuditLog
from proxy.access.callers import Callers
from proxy.app.issuers import fetch_for
from proxy.core.errors import PathNotFound
from proxy.core.routing import Router
from proxy.settings.access import Access
from proxy.web.admin.documents import refusal
from proxy.web.gate import Guards

if TYPE_CHECKING:
    from proxy.access.authenticator import Authenticator
    from proxy.access.sources import Sources
    from proxy.web.token import TokenEndpoint

KEYS_FILE: Final = "token-keys.json"


class Identity:
    """The identification of clients, by the settings in force. Close it when done."""

    def __init__(
        self, guards: Guards, callers: Callers, router: Router, directory: Path, audit: AuditLog
    ) -> None:
        self._access = guards.access
        self._guards, self._callers = guards, callers
        self._audit = audit
        self._router = router
        self._keys_file = directory / KEYS_FILE
        self._sources: Sources | None = None
        self._authenticator: Authenticator | None = None
        self._tokens: TokenEndpoint | None = None

    async def close(self) -> None:
        """End work in the background."""
        if self._authenticator is not None:
            await self._authenticator.close()

    def prepare(self, access: Access) -> "Sources | None":
        """Return the sources of the settings, for ``use``; None without. Raises ``ConfigError``."""
        if not access.is_configured:
            return None
        from proxy.access import sources  # noqa: PLC0415 - see above

        return sources.open_sources(access, fetch_for, self._sources)

    def use(self, sources: "Sources | None", access: Access) -> None:
        """Identify clients by these sources from now on. Neither fails nor waits."""
        if sources is None:
            return  # access control does not ask who clients are
        self._sources = sources
        if self._authenticator is None:
            self._build(sources, access.token_ttl)
        else:
            self._authenticator.use(sources, access.token_ttl)
        assert self._authenticator is not None
        self._access.identify_with(self._authenticator)

    async def handle_token(self, request: BaseRequest) -> StreamResponse:
        """Answer ``/-/token``."""
        if self._tokens is None or not self._access.is_configured:
            return refusal(PathNotFound("no such page: access is not configured"))
        return await self._tokens.handle(request)

    def _build(self, sources: "Sources", ttl: float) -> None:
        from proxy.access.authenticator import Authenticator  # noqa: PLC0415 - see above
        from proxy.access.keys import Keys  # noqa: PLC0415
        from proxy.access.own_tokens import OwnTokens  # noqa: PLC0415
        from proxy.web.token import TokenEndpoint  # noqa: PLC0415

        own = OwnTokens(Keys(self._keys_file), ttl)
        self._authenticator = Authenticator(sources, own, self._callers)
        self._tokens = TokenEndpoint(
            self._guards, self._authenticator, own, self._router, self._audit
        )
