"""Clients with logins of their own at an upstream with ``credentials: caller``."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from tests.access.people import basic, bearer
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

NAME = "team/app"
OTHER = "team/other"
ABSENT = "team/absent"
IMAGE = content.image("team/app", layers=(1000, 400_000))
PASSWORDS = {"ann": "wonderland-of-ann", "amy": "wonderland-of-amy", "bob": "wonderland-of-bob"}
TTL, STALE = 300, 3600

PATHS: dict[str, tuple[str, str]] = {
    "a tag": ("GET", "manifests/latest"),
    "HEAD of a tag": ("HEAD", "manifests/latest"),
    "a manifest": ("GET", f"manifests/{IMAGE.digest}"),
    "HEAD of a manifest": ("HEAD", f"manifests/{IMAGE.digest}"),
    "a small blob": ("GET", f"blobs/{IMAGE.layers[0]}"),
    "a large blob": ("GET", f"blobs/{IMAGE.layers[1]}"),
    "HEAD of a blob": ("HEAD", f"blobs/{IMAGE.layers[1]}"),
    "tags": ("GET", "tags/list"),
    "referrers": ("GET", f"referrers/{IMAGE.digest}"),
}
BODIES = {
    "a tag": IMAGE.manifest,
    "a manifest": IMAGE.manifest,
    "a small blob": IMAGE.blobs[IMAGE.layers[0]],
    "a large blob": IMAGE.blobs[IMAGE.layers[1]],
}


def prepare(upstream: FakeUpstream, scheme: Any, dialect: Any = "distribution") -> None:
    """Make ``NAME`` private to ann and amy, and ``OTHER`` to bob."""
    upstream.auth.scheme, upstream.auth.dialect = scheme, dialect
    upstream.auth.users |= PASSWORDS
    upstream.auth.private |= {NAME: {"ann", "amy"}, OTHER: {"bob"}, ABSENT: set()}
    for name in (NAME, OTHER):
        upstream.add(name, IMAGE, tags=["latest"])


async def started(start: Start, **changes: Any) -> Proxy:
    """Start a proxy that asks docker.io as its clients; library_prefix is off."""
    hub = {"credentials": "caller", "caller_ttl": f"{TTL}s", "caller_stale": f"{STALE}s"}
    hub |= {"library_prefix": False} | changes.pop("hub", {})
    freshness = {"tag_ttl": "1h", "stale_while_revalidate": 0, "negative_ttl": 0}
    freshness |= changes.pop("freshness", {})
    return await start(hub=hub, freshness=freshness, **changes)


def parameters(challenge: str) -> dict[str, str]:
    return dict(re.findall(r'(\w+)="([^"]*)"', challenge))


@dataclass
class Client:
    """A client that follows challenges as containerd does. ``user`` None: it has no login."""

    proxy: Proxy
    user: str | None
    direct: bool = False
    """Send the login with each request, without a token of ours."""
    tokens: dict[str, str] = field(default_factory=dict)
    """By repository; empty for none."""

    @property
    def login(self) -> str | None:
        return None if self.user is None else basic(self.user, PASSWORDS[self.user])

    async def ask(self, method: str, path: str, **headers: str) -> Answer:
        if self.direct:
            if self.login is not None:
                headers["Authorization"] = self.login
            return await self.proxy.ask(method, path, **headers)
        name = "/".join(path.split("/")[2:-2])
        if name not in self.tokens:
            answer = await self.proxy.ask(method, path, **headers)
            if answer.status != 401:
                return answer
            self.tokens[name] = await self.log_in(answer.headers["WWW-Authenticate"])
        return await self.proxy.ask(method, path, **headers, Authorization=self.tokens[name])

    async def prepare(self) -> None:
        """Log in for ``NAME`` and ask for nothing."""
        answer = await self.proxy.get(f"/v2/{NAME}/manifests/latest")
        self.tokens[NAME] = await self.log_in(answer.headers["WWW-Authenticate"])

    async def log_in(self, challenge: str) -> str:
        """Return a token of the proxy, as a challenge says."""
        found = parameters(challenge)
        query = {name: found[name] for name in ("service", "scope") if name in found}
        sent = {} if self.login is None else {"Authorization": self.login}
        async with self.proxy.client.get(found["realm"], params=query, headers=sent) as answer:
            assert answer.status == 200, await answer.text()
            return bearer(json.loads(await answer.read())["token"])

    async def see(self, path: str, name: str = NAME) -> int:
        """Ask for one of ``PATHS`` and check the body of a good answer."""
        method, rest = PATHS[path]
        answer = await self.ask(method, f"/v2/{name}/{rest}")
        if answer.status == 200 and path in BODIES:
            assert answer.body == BODIES[path]
        if answer.status != 200 and method == "GET":
            assert list(json.loads(answer.body)) == ["errors"]
        return answer.status

    async def all(self, name: str = NAME) -> dict[str, int]:
        return {path: await self.see(path, name) for path in PATHS}


def everything(status: int) -> dict[str, int]:
    return dict.fromkeys(PATHS, status)
