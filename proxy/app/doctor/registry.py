"""One registry: its answers, its logins, and a test pull."""

import re
import time
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from aiohttp import ClientResponse
from yarl import URL

from proxy.app.doctor.results import Check, Finding, failed, ok, skipped, warning
from proxy.core.errors import Denied, NotFound, RegistryError, UpstreamFailure
from proxy.core.names import Digest, Repo
from proxy.settings import Upstream as UpstreamSettings
from proxy.settings.upstreams import BUILT_IN
from proxy.upstream.auth import Authorizer, scope_of
from proxy.upstream.credentials import StaticCredentials
from proxy.upstream.headers import parse_challenges
from proxy.upstream.registry import Upstream
from proxy.upstream.transport import HTTPRequest, Transport

MAX_SKEW: Final = 30.0
"""Seconds that the clocks may differ by; ``Date`` has whole seconds."""

FEW_PULLS: Final = 0.1
"""Share of a rate limit below which the rest is too valuable for a check."""

WELL_KNOWN: Final = {
    "docker.io": "library/hello-world:latest",
    "ghcr.io": "containerd/busybox:1.36",
    "quay.io": "podman/hello:latest",
    "gcr.io": "distroless/static:latest",
    "registry.k8s.io": "pause:3.9",
    "mcr.microsoft.com": "hello-world:latest",
    "public.ecr.aws": "docker/library/hello-world:latest",
}
"""A small public image of each registry that is built in."""

_AGE: Final = re.compile(r"[0-9]{1,10}")
_NO_IMAGE: Final = "there is no well-known image; name one with --image"


class Parts(NamedTuple):
    """The parts of one upstream, as the server would build them."""

    settings: UpstreamSettings
    transport: Transport
    authorizer: Authorizer
    upstream: Upstream


class Sample(NamedTuple):
    """An image to look at: a repository, and a tag or digest."""

    repo: Repo
    ref: str

    def __str__(self) -> str:
        return f"{self.repo}{'@' if ':' in self.ref else ':'}{self.ref}"


def well_known(name: str, configured: UpstreamSettings) -> Sample | None:
    """Return a small image of a registry that is built in, None for another one."""
    if name not in WELL_KNOWN or configured.url != BUILT_IN[name]["url"]:
        return None
    repo, _, tag = WELL_KNOWN[name].partition(":")
    return Sample(Repo(repo), tag)


class RegistryChecks:
    """The checks of one registry in their order. ``image`` None: there is no image to test with."""

    def __init__(self, parts: Parts, image: Sample | None) -> None:
        self._settings, self._transport, self._authorizer, self._upstream = parts
        self._image = image
        self._ping = HTTPRequest("GET", self._transport.url / "v2" / "")
        self._skew: float | None = None

    @property
    def _name(self) -> str:
        return self._transport.name

    def checks(self) -> Iterable[tuple[str, Check]]:
        """Return the checks that need the success of ``answer``."""
        return (
            ("clock", self.clock),
            ("anonymous token", self.anonymous),
            ("login", self.login),
            ("head", self.head),
            ("rate limit", self.rate_limit),
            ("redirect", self.redirect),
        )

    async def answer(self) -> Finding:
        """Ask for ``/v2/``, as clients do first (distribution-spec "Determining Support")."""
        began = time.time()
        response = await self._sent(self._ping)
        self._skew = _skew(response, (began + time.time()) / 2)
        match response.status:
            case 200:
                return ok("/v2/ answers 200: no login is needed for it")
            case 401:
                return self._challenged(response)
            case 404:
                return failed(
                    f"{self._transport.url} has no /v2/, so it is no registry",
                    f"correct upstreams.{self._name}.url",
                )
            case status:
                remedy = "wait, or ask who runs the registry"
                return failed(f"/v2/ answers {status}", remedy)

    def _challenged(self, response: ClientResponse) -> Finding:
        lines = response.headers.getall("WWW-Authenticate", [])
        known = {one.scheme: one.parameters for one in parse_challenges(lines)}
        if (bearer := known.get("bearer")) is not None:
            host = _host(bearer.get("realm", ""))
            return ok(f"/v2/ answers 401 and asks for a token of {host}")
        if "basic" in known:
            return ok("/v2/ answers 401 and asks for a user and a password")
        return failed(
            "/v2/ answers 401 and asks for no credentials that Millpond knows",
            "check that url leads to the registry and not to a gateway in front of it",
        )

    async def clock(self) -> Finding:
        """Compare the clocks, by ``Date`` of the last answer."""
        if self._skew is None:
            return skipped("the registry says no time")
        if abs(self._skew) <= MAX_SKEW:
            return ok("this machine and the registry agree about the time")
        way = "behind" if self._skew > 0 else "ahead of"
        return failed(
            f"this machine's clock is {abs(self._skew):.0f} seconds {way} the registry's",
            "set it, for example with: timedatectl set-ntp true",
        )

    async def anonymous(self) -> Finding:
        """Get a token without credentials."""
        own = Authorizer(self._transport, StaticCredentials(), self._settings.auth_hosts)
        try:
            response = await own.send(self._ping, self._repository)
            await self._transport.drain(response)
        except (Denied, UpstreamFailure) as error:
            if not self._settings.is_anonymous:
                return ok(f"without credentials: {self._plain(error)}")
            return failed(
                self._plain(error),
                f"the registry wants a login: set upstreams.{self._name}.username and "
                "password_file, or credentials",
            )
        finally:
            await own.close()
        if not own.was_asked:
            return skipped("the registry asks for no token")
        scope = scope_of(self._repository) or "no scope"
        shut = "" if response.status == 200 else f"; /v2/ answers {response.status} to it"
        return ok(f"a token for {scope}{shut}")

    async def login(self) -> Finding:
        """Log in with the configured credentials, as ``docker login`` does."""
        kind = self._authorizer.credentials.kind
        if self._settings.asks_as_caller:
            return skipped("credentials: caller, so every client sends its login")
        if kind == "none":
            return skipped("no credentials are configured")
        remedy = f"correct the credentials ({kind}) of upstreams.{self._name}"
        try:
            response = await self._authorizer.send(self._ping)
            await self._transport.drain(response)
            if response.status in (401, 403):
                return failed(self._plain(await self._authorizer.refusal("")), remedy)
        except (Denied, UpstreamFailure) as error:
            return failed(self._plain(error), remedy)
        if response.status != 200:
            return failed(f"/v2/ answers {response.status} to a login", remedy)
        if not self._authorizer.was_asked:
            return skipped(f"the registry does not ask for the credentials ({kind})")
        return ok(f"logged in ({kind})")

    async def head(self) -> Finding:
        """Ask for a manifest by HEAD, which no registry counts as a pull."""
        if self._image is None:
            return skipped(_NO_IMAGE)
        try:
            found = await self._upstream.head_manifest(*self._image)
        except NotFound as error:
            return failed(f"{self._image}: {error.message}", "name another image with --image")
        except Denied as error:
            remedy = f"set credentials for upstreams.{self._name} that may pull {self._image}"
            return failed(f"{self._image}: {error.message}", remedy)
        if found is None:
            return warning(
                f"the answer to a HEAD of {self._image} says no digest",
                "nothing is wrong here, but each check of a tag takes a GET",
            )
        return ok(f"{self._image} is {found.descriptor.digest}")

    async def rate_limit(self) -> Finding:
        """Check the rate limit in the answer to the HEAD."""
        budget = self._upstream.budget
        if budget.limit is None or budget.remaining is None:
            return skipped("the registry announces none")
        hours = budget.window / 3600
        text = f"{budget.remaining:,} of {budget.limit:,} pulls in {hours:g} hours are left"
        if budget.remaining > FEW_PULLS * budget.limit:
            return ok(text)
        remedy = "wait, or use an account with a higher limit: upstreams.{}.username"
        make = failed if budget.remaining == 0 else warning
        return make(text, remedy.format(self._name))

    async def redirect(self) -> Finding:
        """Fetch the smallest blob of the image, following redirects.

        That needs GETs of one or two manifests.
        """
        if self._image is None:
            return skipped(_NO_IMAGE)
        budget = self._upstream.budget
        if budget.share is not None and budget.share <= FEW_PULLS:
            return skipped("few pulls are left of the rate limit, and this takes two of them")
        repo, digest = self._image.repo, await self._smallest_blob(self._image)
        if digest is None:
            return skipped(f"{self._image} has no blob to look at")
        url = self._transport.url / "v2" / repo / "blobs" / digest
        try:
            response = await self._authorizer.send(HTTPRequest("GET", url), repo)
            await self._transport.drain(response)
        except RegistryError as error:
            host = error.host or "another host"
            return failed(
                f"blobs come from {host}: {self._plain(error)}",
                f"let this machine reach {host}: look at the firewall, the proxy, and `private`",
            )
        host = response.url.host or ""
        if response.status != 200:
            return failed(f"{host} answers {response.status} to a blob", "ask who runs it")
        is_own = self._transport.is_own(response)
        return ok("blobs come from the registry" if is_own else f"blobs come from {host}")

    async def _smallest_blob(self, image: Sample) -> Digest | None:
        """Return the smallest blob of an image, or of the first image of an index."""
        listed = (await self._upstream.manifest(*image)).content.children
        if listed is not None and listed.manifests and not listed.blobs:
            first = listed.manifests[0].digest
            listed = (await self._upstream.manifest(image.repo, first)).content.children
        blobs = () if listed is None else listed.blobs
        return min(blobs, key=lambda blob: blob.size).digest if blobs else None

    @property
    def _repository(self) -> str:
        return "" if self._image is None else self._image.repo

    async def _sent(self, request: HTTPRequest) -> ClientResponse:
        response = await self._transport.send(request)
        await self._transport.drain(response)
        return response

    def _plain(self, error: RegistryError) -> str:
        """Return the message of an error without credentials."""
        return self._transport.redactor.redact_message(error.message)


def _skew(response: ClientResponse, now: float) -> float | None:
    """Return how many seconds the registry's clock is ahead, None without ``Date``."""
    age = response.headers.get("Age", "0")
    try:
        sent = parsedate_to_datetime(response.headers.get("Date", ""))
        return sent.timestamp() + (int(age) if _AGE.fullmatch(age) else 0) - now
    except (ValueError, OverflowError):
        return None


def _host(realm: str) -> str:
    try:
        return URL(realm).host or "nowhere"
    except ValueError:
        return "nowhere"
