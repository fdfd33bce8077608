"""Pulls an image with the real client of this machine, and checks whether Millpond served it.

The evidence comes from Millpond: with operator access, the event of this pull; else its public
counters, which also change when other clients pull at the same time.
"""

import asyncio
import json
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Self

from proxy.cli.client_setup import ClientName
from proxy.cli.clients.instance import Instance
from proxy.cli.clients.recipes import CERTS_D
from proxy.cli.formatting import count
from proxy.core.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from proxy.cli.client import Client, ServerEvent

EVENTS: Final = "/-/api/v1/events"
PULL_SECONDS: Final = 600.0
QUIET_SECONDS: Final = 1.0
"""How long the counters are watched before the pull: do others pull?"""
SETTLE_SECONDS: Final = 3.0
"""How long counters may lag behind a pull: worker processes report four times a second."""
_STEP: Final = 0.2
_LAST_LINES: Final = 5

IMAGES: Final = {
    "docker.io": "docker.io/library/hello-world:latest",
    "registry.k8s.io": "registry.k8s.io/pause:3.10",
}
"""Small public images."""


class Verdict(StrEnum):
    """What a check found."""

    USED = "used"
    BYPASSED = "bypassed"
    FAILED = "failed"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of a check, in words."""

    verdict: Verdict
    text: str


@dataclass(frozen=True, slots=True)
class Programs:
    """The commands of a client: pull an image, check for it, remove it."""

    pull: tuple[str, ...]
    inspect: tuple[str, ...] = ()
    remove: tuple[str, ...] = ()


def default_image(client: ClientName, instance: Instance) -> str:
    """Return a small image of a registry that the instance has. Raises ``ConfigError``."""
    found = [IMAGES[each.name] for each in instance.registries if each.name in IMAGES]
    if client is ClientName.HELM or not found:
        raise ConfigError("--check: name something to pull with --image docker.io/org/name:tag")
    return found[0]


def programs(client: ClientName, instance: Instance, image: str) -> Programs:
    """Return the commands of a client on this machine. Raises ``ConfigError`` without one."""
    match client:
        case ClientName.DOCKER | ClientName.PODMAN:
            word = client.value
            held = (word, "image", "inspect", image)
            return _found(Programs((word, "pull", image), held, (word, "image", "rm", image)))
        case ClientName.SKOPEO:
            return _found(Programs(("skopeo", "inspect", "--no-tags", f"docker://{image}")))
        case ClientName.CONTAINERD:
            return _containerd(image)
        case ClientName.CRIO:
            return _found(_crictl(("crictl",), image))
        case ClientName.K3S:
            return _found(_crictl(("k3s", "crictl"), image))
        case ClientName.BUILDKIT:
            words = ("buildctl", "build", "--frontend", "dockerfile.v0", "--no-cache")
            return _found(Programs((*words, "--local", "context=.", "--local", "dockerfile=.")))
        case ClientName.HELM:
            option = ("--plain-http",) if instance.is_plain else ()
            chart, _, version = image.rpartition(":")
            show = ("helm", "show", "chart", f"oci://{instance.host}/{chart}")
            return _found(Programs((*show, "--version", version, *option)))
        case ClientName.KANIKO:
            raise ConfigError("kaniko runs in a separate container, so it cannot be checked here")


def _containerd(image: str) -> Programs:
    """Return the commands of the first program: crictl also proves ``config_path``."""
    if shutil.which("crictl"):
        return _crictl(("crictl",), image)
    if shutil.which("nerdctl"):
        inspect = ("nerdctl", "image", "inspect", image)
        return Programs(("nerdctl", "pull", image), inspect, ("nerdctl", "rmi", image))
    images = ("ctr", "--namespace", "millpond-check", "images")
    pull = (*images, "pull", "--hosts-dir", CERTS_D, image)
    return _found(Programs(pull, (), (*images, "rm", "--sync", image)))


def _crictl(words: tuple[str, ...], image: str) -> Programs:
    return Programs((*words, "pull", image), (*words, "inspecti", image), (*words, "rmi", image))


def _found(programs: Programs) -> Programs:
    """Return the commands if their program is there. Raises ``ConfigError``."""
    if shutil.which(programs.pull[0]) is None:
        raise ConfigError(f"--check: {programs.pull[0]} is not installed here")
    return programs


async def check(server: "Client", programs: Programs, image: str) -> Finding:
    """Pull the image and return whether Millpond served it; leave the client as it was.

    Raises ``ErrorAnswer``, ``NoAnswer``.
    """
    upstream, program = image.split("/", maxsplit=1)[0], programs.pull[0]
    before = await _served(server, upstream)
    await asyncio.sleep(QUIET_SECONDS)
    async with _Pulls(server, image) as pulls:
        quiet = await _served(server, upstream)
        has_image = bool(programs.inspect) and (await _run(programs.inspect, image))[0] == 0
        status, said = await _run(programs.pull, image)
        requests = await _moved(server, upstream, quiet) - quiet
    if status != 0:
        seen = f"Millpond got {count(requests, 'request')}"
        return Finding(Verdict.FAILED, f"{program} cannot pull {image}: {said}; {seen}")
    if programs.remove and not has_image:
        await _run(programs.remove, image)
    pulled = f"{program} pulled {image}"
    if pulls.seen is not None:
        return Finding(Verdict.USED, f"{pulled} through Millpond: {pulls.seen}")
    if not requests:
        return Finding(Verdict.BYPASSED, f"{pulled} without Millpond: it bypasses the mirror")
    if quiet != before:
        return Finding(
            Verdict.UNKNOWN,
            f"{pulled}, but others pull from {upstream} through Millpond at the same time: give "
            "the admin token with --token-file FILE, or check again later",
        )
    return Finding(Verdict.USED, f"{pulled} through Millpond: {count(requests, 'request')}")


class _Pulls:
    """Watches the server's events for a pull of one repository, if the server permits that."""

    def __init__(self, server: "Client", image: str) -> None:
        self._server = server
        name = image.partition("@")[0]
        self._repository = name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name
        self._stack = AsyncExitStack()
        self._task: asyncio.Task[None] | None = None
        self.seen: str | None = None
        """Who pulled it, once the event has arrived."""

    async def __aenter__(self) -> Self:
        from proxy.cli.client import ErrorAnswer, NoAnswer  # noqa: PLC0415 - aiohttp

        stream = self._server.events(EVENTS, {"kinds": "pull"})
        with suppress(ErrorAnswer, NoAnswer):  # the counters have to do
            events = await self._stack.enter_async_context(stream)
            self._task = asyncio.create_task(self._watch(events), name="pulls")
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._stack.aclose()

    async def _watch(self, events: "AsyncIterator[ServerEvent]") -> None:
        async for event in events:
            pull = json.loads(event.data)
            subject = str(pull["subject"])
            if subject.startswith((f"{self._repository}:", f"{self._repository}@")):
                agent = str(pull["data"].get("user_agent") or "an unnamed program")
                self.seen = f"{agent.split(' ', maxsplit=1)[0]} at {pull['data'].get('client')}"


async def _served(server: "Client", upstream: str) -> int:
    """Return how many requests for content of an upstream Millpond has counted."""
    upstreams: dict[str, Any] = (await server.ask("GET", "/-/stats"))["upstreams"]
    if upstream not in upstreams:
        listed = ", ".join(upstreams)
        raise ConfigError(f"--image: Millpond has no registry {upstream}; there are {listed}")
    return int(upstreams[upstream]["requests"])


async def _moved(server: "Client", upstream: str, quiet: int) -> int:
    """Return the count once it has changed and is stable, or after ``SETTLE_SECONDS``."""
    last = quiet
    for _ in range(round(SETTLE_SECONDS / _STEP)):
        now = await _served(server, upstream)
        if now != quiet and now == last:
            break
        last = now
        await asyncio.sleep(_STEP)
    return last


async def _run(words: Sequence[str], image: str) -> tuple[int, str]:
    """Run a command where a Dockerfile begins with the image; return its status and last lines."""
    with tempfile.TemporaryDirectory(prefix="millpond-check-") as folder:
        (Path(folder) / "Dockerfile").write_text(f"FROM {image}\n")
        process = await asyncio.create_subprocess_exec(
            *words,
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(PULL_SECONDS):
                _, errors = await process.communicate()
        except TimeoutError:
            return 1, f"no end after {PULL_SECONDS:.0f} seconds"
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        lines = errors.decode(errors="replace").strip().splitlines()
        assert process.returncode is not None
        return process.returncode, " ".join(" ".join(lines[-_LAST_LINES:]).split())
