"""A chain of two real instances, and requests that come back."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from proxy.upstream import hops
from tests.fakes import content, faults
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import Millpond
from tests.parts.process import free_port
from tests.running import Start

IMAGE, NEW = content.image(1), content.image(2)
SBOM = content.artifact(IMAGE)
LATEST = "/v2/app/manifests/latest"


@dataclass
class Relay:
    """Passes each request on to ``target``, without the prefix ``/hub`` of its path."""

    target: str = ""
    port: int = 0
    heads: list[bytes] = field(default_factory=list)

    async def pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heads.append(head)
        host, _, port = self.target.rpartition(":")
        back, onward = await asyncio.open_connection(host, int(port))
        onward.write(
            head.replace(b" /hub/", b" /", 1).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        )
        writer.write(await back.read())
        await writer.drain()
        writer.close()
        onward.close()


@pytest.fixture
async def relay() -> AsyncIterator[Relay]:
    relay = Relay()
    server = await asyncio.start_server(relay.pass_on, "127.0.0.1", 0)
    relay.port = server.sockets[0].getsockname()[1]
    async with server:
        yield relay


@pytest.fixture
def first(tmp_path: Path, upstream: FakeUpstream) -> Iterator[Millpond]:
    """The Millpond that asks the registry, as a process."""
    upstream.add("library/app", IMAGE, tags=["latest"])
    upstream.add("library/app", SBOM, tags=["sbom"])
    (tmp_path / "first").mkdir()
    freshness = {"tag_ttl": "1h", "stale_while_revalidate": 0}
    patience = {"retries": 0, "failures": 1000, "cool_down": 0}
    extra = {"freshness": freshness, "patience": patience, "prefetch": {"blobs": 0}}
    first = Millpond(tmp_path / "first", upstream.url, free_port(), extra)
    yield first
    first.stop()


async def test_a_chain_serves_what_its_registry_does(
    start: Start, upstream: FakeUpstream, first: Millpond, clock: Clock
) -> None:
    await asyncio.to_thread(first.start)
    freshness = {"tag_ttl": "1h", "stale_while_revalidate": 0}
    edge = await start(hub={"url": first.url}, freshness=freshness)
    head = await edge.head(LATEST)
    assert (head.status, head.headers["Docker-Content-Digest"]) == (200, IMAGE.digest)
    assert (await edge.get(LATEST)).body == IMAGE.manifest
    layer = IMAGE.layers[0]
    part = await edge.get(f"/v2/app/blobs/{layer}", Range="bytes=10-19")
    assert (part.status, part.body) == (206, IMAGE.blobs[layer][10:20])
    for digest, data in IMAGE.blobs.items():
        assert (await edge.get(f"/v2/app/blobs/{digest}")).body == data
    referrers = await edge.get(f"/v2/app/referrers/{IMAGE.digest}")
    assert SBOM.digest.encode() in referrers.body
    assert all(hops.INSTANCE in one.headers["Via"] for one in upstream.requests)
    assert all(one.headers["Via"].count("millpond-") == 2 for one in upstream.requests)

    upstream.add("library/app", NEW, tags=["latest"])
    clock.advance(3601)
    assert (await edge.get(LATEST)).body == IMAGE.manifest, "as fresh as the first one says"
    answer = await edge.get(LATEST, Cache_Control="no-cache")
    assert answer.body == NEW.manifest, "the wish for a check reaches the registry"


async def test_a_warning_survives(start: Start, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])
    upstream.fault(faults.header("Warning", '299 - "stale: the last good copy"'))
    edge = await start()
    answer = await edge.get(LATEST)
    assert answer.headers["Warning"] == '299 - "stale: the last good copy"'


async def test_an_old_copy_confirms_nothing(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    """The registry is gone for the first Millpond, which serves its last good copy."""
    upstream.add("library/app", IMAGE, tags=["latest"])
    edge = await start(freshness={"tag_ttl": "60s", "stale_while_revalidate": 0})
    assert "Warning" not in (await edge.get(LATEST)).headers
    upstream.fault(faults.header("Warning", '299 - "stale: upstream failed"'))
    for _ in range(2):
        clock.advance(61)
        answer = await edge.get(LATEST)
        assert (answer.status, answer.body) == (200, IMAGE.manifest)
        assert answer.headers["Warning"].startswith('299 - "stale: ')
    again = await edge.head(LATEST)
    assert again.headers["Warning"].startswith('299 - "stale: '), "it is not fresh either"
    upstream.add("library/app", NEW, tags=["latest"])
    assert (await edge.get(LATEST)).body == NEW.manifest, "a newer copy is taken"


async def test_other_warnings_confirm(start: Start, upstream: FakeUpstream, clock: Clock) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])
    upstream.fault(faults.header("Warning", '299 - "this registry moves"'))
    edge = await start(freshness={"tag_ttl": "60s", "stale_while_revalidate": 0})
    await edge.get(LATEST)
    clock.advance(61)
    answer = await edge.get(LATEST)
    assert "confirmed" in answer.headers["Cache-Status"]


async def test_a_request_that_comes_back_is_refused(start: Start, relay: Relay) -> None:
    proxy = await start(hub={"url": f"http://127.0.0.1:{relay.port}"})
    relay.target = proxy.app.address or ""
    for answer in (await proxy.get(LATEST), await proxy.get(f"/v2/app/blobs/{IMAGE.config}")):
        assert answer.status == 508
        assert b"look for a loop" in answer.body
    assert len(relay.heads) == 2, "neither is repeated"


async def test_a_path_in_front(start: Start, upstream: FakeUpstream, relay: Relay) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])
    relay.target = upstream.host
    proxy = await start(hub={"url": f"http://127.0.0.1:{relay.port}/hub"})
    assert (await proxy.get(LATEST)).body == IMAGE.manifest
    assert relay.heads[0].startswith(b"GET /hub/v2/library/app/manifests/latest ")


@pytest.mark.parametrize(
    "via",
    [f"1.1 other, 1.1 {hops.INSTANCE}", ", ".join(["1.1 x"] * hops.MAX_HOPS), "1.1 " + "x" * 3000],
    ids=["a loop", "too many", "too long"],
)
async def test_the_way_is_bounded(start: Start, upstream: FakeUpstream, via: str) -> None:
    upstream.add("library/app", IMAGE, tags=["latest"])
    proxy = await start()
    for _ in range(3):
        assert (await proxy.get(LATEST, Via=via)).status == 508
    assert not upstream.requests
