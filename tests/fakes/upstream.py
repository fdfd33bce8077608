"""A real HTTP registry on 127.0.0.1 for tests to pull from, and to break in every known way.

    async with FakeUpstream() as upstream:
        upstream.add("library/alpine", image())
        upstream.fail(status=503, kind="blob", times=3)

It answers in this order: `auth` may refuse, `behaviour` says how an honest registry of its kind
answers, and the rules added by `fault` spoil that, each in turn.
"""

import asyncio
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypedDict, Unpack

from aiohttp import web

from tests.fakes import faults
from tests.fakes.auth import Addresses, Auth, Authority
from tests.fakes.content import Content, digest
from tests.fakes.records import Kind, Log, Record, Server, locate
from tests.fakes.registry import Behaviour, Registry, Repository, Stored
from tests.fakes.replies import Reply, deliver, keep_headers
from tests.parts.process import held

if TYPE_CHECKING:
    import socket


class Match(TypedDict, total=False):
    """Which requests a rule is for; see `faults.Rule`."""

    kind: Kind | None
    reference: str | None
    repository: str | None
    method: str | None
    times: int | None
    after: int
    challenges: bool


class FakeUpstream:
    """A registry, its token server and its CDN, each on a port of its own, in the test's loop."""

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        ssl_context: ssl.SSLContext | None = None,
        names: Mapping[Server, str] | None = None,
        registry_host: str = "127.0.0.1",
        token_host: str = "127.0.0.1",
        cdn_host: str = "127.0.0.1",
        base_path: str = "",
    ) -> None:
        """Prepare; `base_path` is what comes before `/v2/` in all paths of the registry.

        Each server listens on its host. `names` are what its URLs say instead of that.
        """
        self.auth = Auth()
        self.behaviour = Behaviour()
        self.rules: list[faults.Rule] = []
        self._clock = clock
        self._ssl_context = ssl_context
        self._base_path = base_path
        self._registry = Registry(self.behaviour, clock)
        self._authority = Authority(self.auth, clock, self._registry.repositories.__contains__)
        self._log = Log()
        self._ports: dict[Server, int] = {"registry": 0, "token": 0, "cdn": 0}
        self._kept: list[socket.socket] = []
        self._hosts: dict[Server, str] = {
            "registry": registry_host,
            "token": token_host,
            "cdn": cdn_host,
        }
        self.names = {**self._hosts, **(names or {})}
        self._runners: list[web.AppRunner] = []

    def __repr__(self) -> str:
        return f"<FakeUpstream {self.url}, {len(self.requests)} requests>"

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
        for kept in self._kept:
            kept.close()

    async def start(self) -> None:
        """Listen; again on the same ports after `stop`."""
        for server, port in self._ports.items():
            if not port:
                kept, self._ports[server] = held(self._hosts[server])
                self._kept.append(kept)
            await self._listen(server)

    async def stop(self) -> None:
        """Refuse connections from now on, and break those that are open."""
        runners, self._runners = self._runners, []
        for runner in runners:
            await runner.cleanup()

    # Addresses

    @property
    def url(self) -> str:
        """The registry's base URL, without a slash at the end."""
        return f"{self._addresses.registry}{self._base_path}"

    @property
    def host(self) -> str:
        """The registry's host and port, as in an image's name."""
        return f"{self._hosts['registry']}:{self._ports['registry']}"

    @property
    def token_url(self) -> str:
        """The token server's base URL."""
        return self._addresses.token

    @property
    def cdn_url(self) -> str:
        """The CDN's base URL."""
        return self._addresses.cdn

    # Content

    def add(
        self, repository: str, content: Content, tags: str | Iterable[str] = ("latest",)
    ) -> Content:
        """Store an image or index with all below it, under `tags`; returns it."""
        names = (tags,) if isinstance(tags, str) else tags
        self._repository(repository).add(content, names)
        return content

    def add_blob(self, repository: str, data: bytes, algorithm: str = "sha256") -> str:
        """Store a blob which no manifest need name; returns its digest."""
        name = digest(data, algorithm)
        self._repository(repository).blobs[name] = data
        return name

    def add_manifest(
        self, repository: str, body: bytes, media_type: str, tags: Iterable[str] = ()
    ) -> str:
        """Store any bytes as a manifest; returns its digest."""
        name = digest(body)
        held = self._repository(repository)
        held.manifests[name] = Stored(body, media_type)
        held.tags.update(dict.fromkeys(tags, name))
        return name

    def retag(self, repository: str, tag: str, content: Content | str) -> None:
        """Let `tag` name another manifest, which is stored first unless given by its digest."""
        if isinstance(content, str):
            self._repository(repository).tags[tag] = content
        else:
            self.add(repository, content, tag)

    def remove_tag(self, repository: str, tag: str) -> None:
        """Forget a tag; its manifest stays."""
        del self._repository(repository).tags[tag]

    def remove(self, repository: str, name: str | None = None) -> None:
        """Forget a manifest or blob by its digest, or the whole repository."""
        if name is None:
            del self._registry.repositories[repository]
            return
        held = self._repository(repository)
        held.manifests.pop(name, None)
        held.blobs.pop(name, None)

    # Faults

    def fault(self, *effects: faults.Effect, **match: Unpack[Match]) -> faults.Rule:
        """Apply `effects` to the answers of matching requests; returns the rule, to look at."""
        rule = faults.Rule(effects, **match)
        self.rules.append(rule)
        return rule

    def fail(
        self, status: int, retry_after: str | int | None = None, **match: Unpack[Match]
    ) -> faults.Rule:
        """Answer matching requests by an error."""
        return self.fault(faults.status(status, retry_after=retry_after), **match)

    def hold(self, **match: Unpack[Match]) -> asyncio.Event:
        """Hold matching answers back until the event returned is set."""
        gate = asyncio.Event()
        self.fault(faults.hold(gate), **match)
        return gate

    def stall(self, at: int, **match: Unpack[Match]) -> asyncio.Event:
        """Stop matching bodies after `at` bytes until the event returned is set."""
        release = asyncio.Event()
        self.fault(faults.stall(at, release), **match)
        return release

    def heal(self) -> None:
        """Drop all rules."""
        self.rules.clear()

    def revoke_tokens(self) -> None:
        """Make all tokens issued so far worthless, though they have not expired."""
        self._authority.revoke()

    # Records

    @property
    def requests(self) -> list[Record]:
        """What the registry was asked, in order of arrival."""
        return [record for record in self._log.of("registry") if record.kind != "token"]

    @property
    def token_requests(self) -> list[Record]:
        """What the token server was asked (wherever the realm is)."""
        away = [*self._log.of("token"), *self._log.of("registry")]
        return [record for record in away if record.kind == "token"]

    @property
    def cdn_requests(self) -> list[Record]:
        """What the CDN was asked."""
        return self._log.of("cdn")

    def count(
        self, method: str | None = None, kind: Kind | None = None, ref: str | None = None
    ) -> int:
        """How many requests the registry has had, of this method, kind and reference."""
        return sum(
            method in {None, record.method}
            and kind in {None, record.kind}
            and ref in {None, record.reference}
            for record in self.requests
        )

    def bodies(self, digest: str) -> int:
        """How many GET bodies were begun for a blob, here or at the CDN."""
        return self._log.bodies(digest)

    def clear(self) -> None:
        """Forget all requests so far."""
        self._log.clear()

    async def until(self, condition: Callable[[], bool], timeout: float = 30.0) -> None:  # noqa: ASYNC109 - a test that hangs tells less than one that fails
        """Wait for what must happen here: `await upstream.until(lambda: upstream.count() == 2)`."""
        await self._log.until(condition, timeout)

    # Serving

    @property
    def _addresses(self) -> Addresses:
        scheme = "http" if self._ssl_context is None else "https"
        where = {name: f"{scheme}://{self.names[name]}:{self._ports[name]}" for name in self._ports}
        return Addresses(where["registry"], where["token"], where["cdn"])

    def _repository(self, name: str) -> Repository:
        return self._registry.repositories.setdefault(name, Repository())

    async def _listen(self, server: Server) -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._serve(server, request)

        app = web.Application()
        app.router.add_route("*", "/{path:.*}", handle)
        app.on_response_prepare.append(keep_headers)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.05
        )
        await runner.setup()
        self._runners.append(runner)
        host, port = self._hosts[server], self._ports[server]
        await web.TCPSite(runner, host, port, ssl_context=self._ssl_context).start()

    async def _serve(self, server: Server, request: web.Request) -> web.StreamResponse:
        record = await self._read(server, request)
        exchange = self._log.open(record)
        reply, refused = self._answer(record)
        for rule in self.rules:
            reply = rule.apply(record, reply, refused=refused)
        return await deliver(request, exchange, reply)

    async def _read(self, server: Server, request: web.Request) -> Record:
        kind, repository, reference = self._locate(server, request.path)
        form = await request.post() if kind == "token" else None
        record = Record(
            server=server,
            method=request.method,
            path=request.rel_url.raw_path,
            kind=kind,
            repository=repository,
            reference=reference,
            query=request.query,
            headers=request.headers,
            at=self._clock(),
            client=request.remote or "",
        )
        if form is None:
            return record
        return record.with_form({key: str(value) for key, value in form.items()})

    def _locate(self, server: Server, path: str) -> tuple[Kind, str | None, str | None]:
        """What `path` names; the registry has nothing at `/v2/` if its base path is another."""
        inside = path.removeprefix(self._base_path)
        if server == "registry" and self._base_path and inside == path and path.startswith("/v2"):
            return "other", None, None
        return locate(inside)

    def _answer(self, record: Record) -> tuple[Reply, bool]:
        """The answer before anything goes wrong, and whether it is a refusal at the door."""
        if record.kind == "token" and record.server != "cdn":
            return self._authority.issue(record), False
        if record.server == "cdn":
            return self._registry.data(record), False
        refusal = self._authority.refuse(record, self._addresses)
        if refusal is not None:
            return refusal, True
        return self._registry.answer(record, self._addresses), False
