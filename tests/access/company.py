"""Clients of a company: who they are to the tests, and an identifier that knows them."""

import asyncio
import base64
from dataclasses import dataclass, field

from proxy.access.identity import Certificate
from proxy.access.principals import Method, Principal
from proxy.core.errors import Unauthorized

GROUPS = {"ann": {"dev"}, "bob": set[str](), "ci:acme/app": set[str](), "ops": set[str]()}
NODE = "127.0.0.2"
"""The address of a machine in the network ``ci``."""

RULES = [
    {"deny": "pull", "images": ["docker.io/*/miner*"], "because": "SEC-12"},
    {"allow": "pull", "images": ["docker.io/library/**", "docker.io/bad/**"]},
    {
        "allow": "pull",
        "images": ["ghcr.io/acme/**"],
        "to": ["group:dev", "network:ci", "user:ci:acme/*"],
    },
    {"allow": "admin", "to": ["user:ops"]},
]
ACCESS = {"networks": {"ci": [f"{NODE}/32"]}, "rules": RULES}


def basic(user: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:password".encode()).decode()


@dataclass
class People:
    """``Bearer NAME`` is known at once; ``Basic`` has to be verified the first time."""

    users: set[str] = field(default_factory=lambda: set(GROUPS))
    verified: set[str] = field(default_factory=set)

    def seal(self, authorization: str) -> bytes:
        return authorization.encode()

    def recognise(
        self, credential: bytes | None, address: str | None, certificate: Certificate | None
    ) -> Principal | None:
        authorization = None if credential is None else credential.decode()
        if certificate is not None:
            return self._user(address, certificate.common_name or "", Method.CERTIFICATE)
        if authorization in (None, "Bearer anonymous"):
            return Principal(address)
        assert authorization is not None
        name = authorization.removeprefix("Bearer ")
        if name in self.users:
            return self._user(address, name, Method.TOKEN)
        for user in self.verified & self.users:
            if authorization == basic(user):
                return self._user(address, user, Method.PASSWORD)
        return None

    async def identify(
        self,
        authorization: str | None,
        address: str | None,
        certificate: Certificate | None,
        upstream: str | None = None,
    ) -> Principal:
        await asyncio.sleep(0)
        for user in self.users:
            if authorization == basic(user):
                self.verified.add(user)
                return self._user(address, user, Method.PASSWORD)
        raise Unauthorized("wrong credentials")

    def _user(self, address: str | None, name: str, method: Method) -> Principal:
        return Principal(address, name, frozenset(GROUPS.get(name, ())), method=method)
