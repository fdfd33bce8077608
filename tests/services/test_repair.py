"""Bad content that clients ask for: what they get, and how it is repaired meanwhile."""

import asyncio
import json
import os
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.core.names import Digest
from proxy.services import verify
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until
from tests.services.verifying import DAMAGES, DATA, IMAGE, LAYER, NAME, altered

PATH = f"/v2/app/blobs/{LAYER}"
LATEST = "/v2/app/manifests/latest"


def path(proxy: Proxy, digest: str) -> Path:
    return proxy.storage / "blobs/sha256" / digest.removeprefix("sha256:")


async def verified(proxy: Proxy, query: str = "repair=true") -> list[dict[str, Any]]:
    """Ask over the admin socket."""
    socket = str(proxy.storage / "admin.sock")
    async with (
        ClientSession(connector=UnixConnector(socket)) as session,
        session.post(f"http://millpond/-/verify?{query}") as response,
    ):
        assert response.status == 200, await response.text()
        return [json.loads(line) async for line in response.content]


async def pulled(proxy: Proxy) -> None:
    for part in (LATEST, *(f"/v2/app/blobs/{digest}" for digest in IMAGE.blobs)):
        assert (await proxy.get(part)).status == 200
    await proxy.settled()


@pytest.fixture
async def pulling(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", IMAGE)
    proxy = await start(memory={"manifests": 1})
    await pulled(proxy)
    upstream.clear()
    return proxy


@pytest.mark.parametrize("damage", ["short", "long", "empty"])
async def test_t03_a_held_blob_of_another_size_is_never_served_but_fetched_again(
    pulling: Proxy, upstream: FakeUpstream, damage: str
) -> None:
    path(pulling, LAYER).write_bytes(DAMAGES[damage](DATA))
    assert (await pulling.head(PATH)).headers["Content-Length"] == str(len(DATA))
    answer = await pulling.get(PATH)
    assert (answer.status, answer.body) == (200, DATA)
    await pulling.settled()
    assert upstream.bodies(LAYER) == 1
    assert path(pulling, LAYER).read_bytes() == DATA


@pytest.mark.parametrize("damage", DAMAGES)
async def test_t03_a_held_manifest_that_has_changed_is_never_served_but_fetched_again(
    pulling: Proxy, upstream: FakeUpstream, damage: str
) -> None:
    path(pulling, IMAGE.digest).write_bytes(DAMAGES[damage](IMAGE.manifest))
    answer = await pulling.get(LATEST)
    assert (answer.status, answer.body) == (200, IMAGE.manifest)
    assert upstream.count("GET", "manifest") == 1


async def test_t03_a_blob_altered_to_the_same_size_is_sent_until_it_is_verified_and_never_after(
    pulling: Proxy, upstream: FakeUpstream
) -> None:
    """No pull hashes what is held: clients do. Verification is what finds it."""
    path(pulling, LAYER).write_bytes(altered(DATA))
    assert (await pulling.get(PATH)).body == altered(DATA)
    await verified(pulling, "repair=false")
    assert LAYER not in pulling.held()
    assert (await pulling.get(PATH)).body == DATA
    assert upstream.bodies(LAYER) == 1


@pytest.mark.parametrize("digest", [LAYER, IMAGE.digest], ids=["blob", "manifest"])
async def test_bad_content_is_fetched_again_from_upstream(
    pulling: Proxy, upstream: FakeUpstream, digest: str
) -> None:
    right = path(pulling, digest).read_bytes()
    path(pulling, digest).write_bytes(altered(right))
    _, bad, done = await verified(pulling)
    assert (bad["digest"], bad["repaired"], bad["images"]) == (digest, True, [NAME])
    assert (done["bad"], done["repaired"]) == (1, 1)
    assert Path(bad["quarantined"]).read_bytes() == altered(right)
    assert path(pulling, digest).read_bytes() == right
    assert [request.reference for request in upstream.requests] == [digest]
    assert (pulling.stats["cache"]["corrupted"], pulling.stats["cache"]["repaired"]) == (1, 1)
    upstream.clear()
    await pulled(pulling)
    assert not upstream.requests


async def test_a_manifest_in_ram_is_repaired_on_the_disk_too(
    start: Start, upstream: FakeUpstream
) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start()
    await pulled(proxy)
    path(proxy, IMAGE.digest).write_bytes(altered(IMAGE.manifest))
    _, bad, _ = await verified(proxy)
    assert bad["repaired"] is True
    assert path(proxy, IMAGE.digest).read_bytes() == IMAGE.manifest


async def test_without_upstream_nothing_is_repaired_and_clients_get_an_error(
    pulling: Proxy, upstream: FakeUpstream
) -> None:
    path(pulling, LAYER).write_bytes(altered(DATA))
    await upstream.stop()
    _, bad, done = await verified(pulling)
    assert (bad["repaired"], done["bad"], done["repaired"]) == (False, 1, 0)
    assert (await pulling.get(PATH)).status == 502
    await upstream.start()
    assert (await pulling.get(PATH)).body == DATA


async def test_clients_finish_reading_a_blob_that_is_set_aside(
    pulling: Proxy, upstream: FakeUpstream
) -> None:
    big = upstream.add_blob("library/app", content.blob(30_000_000))
    assert (await pulling.get(f"/v2/app/blobs/{big}")).status == 200
    await pulling.settled()
    file = path(pulling, big)
    with file.open("r+b") as opened_file:
        opened_file.seek(-1, os.SEEK_END)
        last = opened_file.read(1)
        opened_file.seek(-1, os.SEEK_END)
        opened_file.write(bytes([last[0] ^ 1]))
    async with pulling.client.get(f"/v2/app/blobs/{big}") as response:
        await response.content.readexactly(1000)
        [_, bad, *_] = [e for e in await verified(pulling) if e["event"] != "progress"]
        assert (bad["digest"], bad["repaired"]) == (big, True)
        rest = await response.content.read()
    assert len(rest) == 30_000_000 - 1000, "the bad one, to its end: its digest tells the client"
    answer = await pulling.get(f"/v2/app/blobs/{big}")
    assert content.digest(answer.body) == big


async def test_t61_content_set_aside_is_repaired_after_the_quarantine_was_emptied(
    pulling: Proxy, upstream: FakeUpstream
) -> None:
    path(pulling, LAYER).write_bytes(altered(DATA))
    assert (await verified(pulling, "repair=false"))[-1]["bad"] == 1
    for file in (pulling.storage / "quarantine").iterdir():
        file.unlink()
    [_, bad, done] = await verified(pulling)
    assert (bad["digest"], bad["repaired"], bad["images"]) == (LAYER, True, [NAME])
    assert (done["bad"], done["repaired"]) == (1, 1)
    assert path(pulling, LAYER).read_bytes() == DATA


async def test_t61_content_that_a_client_could_not_read_is_repaired(
    pulling: Proxy, upstream: FakeUpstream
) -> None:
    """Set aside by somebody else than a verification, with a note that names no type."""
    await pulling.app.content.faults.quarantine(
        Digest(IMAGE.digest), {"reason": "it cannot be read"}
    )
    [_, bad, _] = await verified(pulling)
    assert (bad["digest"], bad["repaired"]) == (IMAGE.digest, True)
    assert path(pulling, IMAGE.digest).read_bytes() == IMAGE.manifest
    assert [event["event"] for event in await verified(pulling)] == ["start", "done"]


async def test_t61_a_pinned_image_is_completed_and_others_are_not(
    start: Start, upstream: FakeUpstream
) -> None:
    other = content.image(7)
    upstream.add("library/app", IMAGE)
    upstream.add("library/other", other)
    proxy = await start(pins=["app"])
    for name in ("app", "other"):
        assert (await proxy.get(f"/v2/{name}/manifests/latest")).status == 200
    await proxy.settled()
    [_, *bad, done] = await verified(proxy)
    assert {event["digest"] for event in bad} == set(IMAGE.blobs)
    assert {event["reason"] for event in bad} == {"a pinned image lacks it"}
    assert (done["bad"], done["repaired"]) == (len(IMAGE.blobs),) * 2
    assert proxy.held() == {IMAGE.digest, *IMAGE.blobs, other.digest}


async def test_t61_held_images_of_a_pinned_index_are_completed(
    start: Start, upstream: FakeUpstream
) -> None:
    index = content.index(content.image(1), content.image(2), content.image(3))
    upstream.add("library/app", index)
    proxy = await start(pins=["app"])
    held, unwanted, *_ = index.children
    for ref in ("latest", held.digest):
        assert (await proxy.get(f"/v2/app/manifests/{ref}")).status == 200
    await proxy.settled()
    done = (await verified(proxy))[-1]
    assert done["bad"] == done["repaired"] == len(held.blobs)
    assert proxy.held() == {index.digest, held.digest, *held.blobs}
    assert unwanted.digest not in proxy.held()


async def test_the_scrub_starts_after_its_interval_repairs_and_repeats(
    start: Start, upstream: FakeUpstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = asyncio.sleep
    waits: list[float] = []

    async def sleeps(seconds: float) -> None:
        if seconds > 3600:
            waits.append(seconds)
            clock.advance(seconds)
            seconds = 0.01
        await sleep(seconds)

    upstream.add("library/app", IMAGE)
    proxy = await start()
    await pulled(proxy)
    path(proxy, LAYER).write_bytes(altered(DATA))
    await proxy.close()
    monkeypatch.setattr(verify.asyncio, "sleep", sleeps)
    proxy = await start(storage={"scrub_every": "30d", "scrub_rate": 0})
    await until(lambda: proxy.stats["cache"]["repaired"] == 1)
    await until(lambda: len(waits) >= 3)
    assert set(waits) == {30 * 86400.0}
    assert path(proxy, LAYER).read_bytes() == DATA
    assert '"stage": "done"' in proxy.log.getvalue()
