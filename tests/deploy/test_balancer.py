"""The nginx of `deploy/fleet` before real replicas: what it repeats, hides and passes through."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from aiohttp import ClientSession, TCPConnector

from tests.deploy.cluster import DEPLOY
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts import millpond, nginx
from tests.parts.millpond import Millpond
from tests.parts.nginx import Nginx
from tests.parts.process import wait_until
from tests.running import until

CONFIG = DEPLOY / "fleet" / "nginx.conf"
REPLICAS = [f"172.30.5.1{number}:5000" for number in (1, 2, 3)]
MB = 1_000_000
LAYER = 40 * MB

pytestmark = pytest.mark.timeout(240)


class Balanced:
    """Two replicas behind nginx; the second one has two of the three addresses."""

    def __init__(self, front: Nginx, replicas: list[Millpond], client: ClientSession) -> None:
        self.front = front
        self.replicas = replicas
        self.client = client

    async def status(self, path: str) -> int:
        async with self.client.get(f"{self.front.url}{path}") as answer:
            await answer.read()
            return answer.status

    async def logged(self, text: str) -> list[str]:
        """Return nginx's log lines with this text; it writes them after the response."""

        def found() -> list[str]:
            return [line for line in self.front.requests() if text in line]

        await until(lambda: bool(found()))
        return found()


@pytest.fixture
def delay() -> str:
    """For how long a replica that stops goes on accepting connections."""
    return "0s"


@pytest.fixture
async def balanced(upstream: FakeUpstream, delay: str) -> AsyncIterator[Balanced]:
    upstream.add("library/app", content.image(1, layers=(LAYER,)))
    extra = {"shutdown_delay": delay, "access": {"trusted_proxies": ["127.0.0.1"]}}
    with ExitStack() as stack:

        def started() -> tuple[Nginx, list[Millpond]]:
            replicas = [
                stack.enter_context(millpond.running(upstream.url, extra=extra)) for _ in range(2)
            ]
            addresses = [*(each.address for each in replicas), replicas[-1].address]
            moved = dict(zip(REPLICAS, addresses, strict=True))
            # A replica that hangs is left after 25 s there.
            moved["proxy_read_timeout 25s"] = "proxy_read_timeout 4s"
            return stack.enter_context(nginx.running(CONFIG, moved)), replicas

        front, replicas = await asyncio.to_thread(started)
        async with ClientSession() as client:
            yield Balanced(front, replicas, client)
        await asyncio.to_thread(stack.close)


async def test_only_the_paths_of_clients_are_forwarded(balanced: Balanced) -> None:
    for path in ("/v2/", "/-/healthz", "/v2/library/app/manifests/latest"):
        assert await balanced.status(path) == 200
    for path in ("/metrics", "/-/stats", "/-/fleet", "/-/readyz", "/", "/-/healthz/../stats"):
        assert await balanced.status(path) == 404


async def test_a_registry_that_does_not_have_it_is_not_asked_again(
    balanced: Balanced, upstream: FakeUpstream
) -> None:
    upstream.fail(status=500, kind="manifest")
    upstream.clear()
    assert await balanced.status("/v2/library/none/manifests/latest") in {404, 502}
    served = await balanced.logged("/none/")
    assert len(served) == 1
    assert ", 50" not in served[0].rpartition('"')[2].replace(", 200", "")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "hanging"])
async def test_a_replica_that_fails_costs_no_request(
    balanced: Balanced, end: signal.Signals
) -> None:
    path = "/v2/library/app/manifests/latest"
    for _ in range(6):
        assert await balanced.status(path) == 200
    lost, left = balanced.replicas
    os.kill(lost.pid, end)
    try:
        assert [await balanced.status(path) for _ in range(20)] == [200] * 20
        assert await balanced.logged(f"{lost.address}, {left.address}")
    finally:
        if end is signal.SIGSTOP:
            os.kill(lost.pid, signal.SIGCONT)
        else:
            lost.start()


@pytest.mark.parametrize("delay", ["2s"])
async def test_a_replica_that_stops_costs_no_request(balanced: Balanced) -> None:
    path = "/v2/library/app/manifests/latest"
    assert await balanced.status(path) == 200
    leaving = balanced.replicas[0]
    os.kill(leaving.pid, signal.SIGTERM)
    statuses = set()
    while leaving.is_alive:
        statuses.add(await balanced.status(path))
    assert statuses == {200}
    assert leaving.status() == 0
    await asyncio.to_thread(leaving.start)


async def test_a_large_body_passes_without_a_copy(
    balanced: Balanced, upstream: FakeUpstream
) -> None:
    [layer] = content.image(1, layers=(LAYER,)).layers
    release = upstream.stall(LAYER // 2, kind="blob")
    hashed, size = hashlib.sha256(), 0
    async with balanced.client.get(f"{balanced.front.url}/v2/library/app/blobs/{layer}") as answer:
        assert answer.status == 200
        while size < LAYER:
            part = await answer.content.read(MB)
            assert part
            hashed.update(part)
            size += len(part)
            assert not temporary_files(balanced.front)
            if size > LAYER // 4:  # what was sent so far arrives before the rest is there
                release.set()
            await asyncio.sleep(0.01)  # a client that is slower than Millpond
    assert f"sha256:{hashed.hexdigest()}" == layer


def temporary_files(front: Nginx) -> list[str]:
    """The files with parts of bodies that nginx has open; they have no name any more."""
    opened = []
    for worker in front.workers():
        for descriptor in Path(f"/proc/{worker}/fd").iterdir():
            with suppress(FileNotFoundError):  # it was closed meanwhile
                opened.append(str(descriptor.readlink()))
    return [name for name in opened if "deleted" in name and "proxy" in name]


async def test_clients_cannot_lie_about_their_address(balanced: Balanced) -> None:
    forged = {"X-Forwarded-For": "192.0.2.66", "Forwarded": "for=192.0.2.67"}
    url = f"{balanced.front.url}/v2/library/app/manifests/latest"
    other = TCPConnector(local_addr=("127.0.0.2", 0))
    async with ClientSession(connector=other) as client, client.get(url, headers=forged) as answer:
        assert answer.status == 200

    def logged() -> list[str]:
        return [
            event["client"]
            for each in balanced.replicas
            for event in each.events("request")
            if event.get("kind") == "manifest"
        ]

    await asyncio.to_thread(wait_until, logged, "the request to be logged")
    assert logged() == ["127.0.0.2"]
