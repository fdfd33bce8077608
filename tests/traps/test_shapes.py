"""Hostile manifests: senseless sizes, and JSON that is slow to parse."""

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start

REPO = "library/hostile"
MANIFESTS = f"/v2/{REPO}/manifests"
STALL = 0.25
"""Seconds of the whole process's time between two turns of the loop."""

GOOD = content.image(1)


def poisoned(size: str) -> bytes:
    """An image whose first layer claims a size, as JSON has it."""
    document = json.loads(GOOD.manifest)
    document["layers"][0]["size"] = "SIZE"
    return json.dumps(document).replace('"SIZE"', size).encode()


@pytest.mark.parametrize("size", [str(1 << 64), str((1 << 60) + 1), "-1", "1" * 5000, '"5"'])
async def test_t44_a_manifest_with_an_absurd_size_is_passed_on_and_harms_nothing(
    start: Start, upstream: FakeUpstream, size: str
) -> None:
    body = poisoned(size)
    digest = upstream.add_manifest(REPO, body, content.OCI_MANIFEST, ["bad"])
    for data in GOOD.blobs.values():
        upstream.add_blob(REPO, data)
    proxy = await start()
    for ref in ("bad", digest, "bad"):
        answer = await proxy.get(f"{MANIFESTS}/{ref}")
        assert (answer.status, answer.body) == (200, body)
        assert answer.headers["Docker-Content-Digest"] == digest
    for blob, data in GOOD.blobs.items():
        assert (await proxy.get(f"/v2/{REPO}/blobs/{blob}")).body == data
    await proxy.settled()
    assert digest in proxy.held(), "it is kept like any other"
    await proxy.close()

    proxy = await start(offline=True)
    assert (await proxy.get(f"{MANIFESTS}/bad")).status == 404, "it is not known what it needs"
    await proxy.close()

    proxy = await start(storage={"max_size": "1MiB"})
    assert (await proxy.get(f"{MANIFESTS}/bad")).body == body
    upstream.add(REPO, GOOD, "good")
    assert (await proxy.get(f"{MANIFESTS}/good")).status == 200
    for seed in range(2, 12):  # more than fits: it is evicted like any other
        image = content.image(seed, [300_000])
        upstream.add(REPO, image, f"v{seed}")
        assert (await proxy.get(f"{MANIFESTS}/v{seed}")).status == 200
        for blob, data in image.blobs.items():
            assert (await proxy.get(f"/v2/{REPO}/blobs/{blob}")).body == data
        await proxy.settled()
    assert proxy.stats["cache"]["bytes"] <= 1 << 20
    assert digest not in proxy.held()


async def test_t44_an_absurd_size_in_an_index_or_a_subject_harms_nothing(
    start: Start, upstream: FakeUpstream
) -> None:
    bad: dict[str, Any] = GOOD.descriptor | {"size": 1 << 64}
    index = {"schemaVersion": 2, "mediaType": content.OCI_INDEX, "manifests": [bad]}
    refers = json.loads(GOOD.manifest) | {"subject": bad, "annotations": {"a": 1}}
    proxy = await start()
    for tag, document in (("index", index), ("refers", refers)):
        body = json.dumps(document).encode()
        upstream.add_manifest(REPO, body, document["mediaType"], [tag])
        assert (await proxy.get(f"{MANIFESTS}/{tag}")).body == body
    assert proxy.stats["cache"]["storage_errors"] == 0


async def test_t44_referrers_of_wrong_types_are_told_as_far_as_they_are_right(
    start: Start, upstream: FakeUpstream
) -> None:
    subject, good = content.digest(b"subject"), content.digest(b"good")
    entries = [
        {"mediaType": "a/b", "digest": good, "size": 1 << 64},
        {"mediaType": ["a/b"], "digest": good, "size": 5, "artifactType": {}, "annotations": "x"},
        {"digest": 7, "size": 5},
        "nothing",
    ]
    tag = subject.replace(":", "-")
    body = json.dumps({"schemaVersion": 2, "manifests": entries}).encode()
    upstream.behaviour.referrers = False
    upstream.add_manifest(REPO, body, content.OCI_INDEX, [tag])
    proxy = await start()
    answer = await proxy.get(f"/v2/{REPO}/referrers/{subject}")
    assert answer.status == 200
    told = json.loads(answer.body)["manifests"]
    assert told == [{"digest": good, "size": 5, "annotations": {}}]


class Stalls:
    """How long the loop did nothing else, in seconds of this process's time: others may be busy."""

    def __init__(self) -> None:
        self.longest = 0.0

    async def watch(self) -> None:
        while True:
            before = time.process_time()
            await asyncio.sleep(0)
            self.longest = max(self.longest, time.process_time() - before)


@asynccontextmanager
async def stalls() -> AsyncIterator[Stalls]:
    found = Stalls()
    watching = asyncio.create_task(found.watch())
    try:
        yield found
    finally:
        watching.cancel()


def many(number: int) -> bytes:
    """An image that lists so many layers."""
    layers = [
        {"mediaType": "application/x", "digest": content.digest(b"%d" % n), "size": n}
        for n in range(number)
    ]
    return json.dumps(json.loads(GOOD.manifest) | {"layers": layers}).encode()


SHAPES = {
    "lists": b'{"schemaVersion":2,"x":[' + b"[]," * 1_398_000 + b"[]]}",
    "objects": b'{"schemaVersion":2,"x":[' + b"{}," * 1_398_000 + b"{}]}",
    "numbers": b'{"schemaVersion":2,"x":[' + b"1," * 2_000_000 + b"1]}",
    "keys": b"{" + b"".join(b'"%d":1,' % n for n in range(400_000)) + b'"schemaVersion":2}',
    "descriptors": many(30_000),
}


@pytest.mark.parametrize("shape", SHAPES)
async def test_t45_json_of_any_shape_does_not_stop_the_others(
    start: Start, upstream: FakeUpstream, shape: str
) -> None:
    body = SHAPES[shape]
    digest = upstream.add_manifest(REPO, body, content.OCI_MANIFEST, ["latest"])
    proxy = await start()
    assert (await proxy.get("/v2/")).status == 200
    async with stalls() as found:
        for ref in ("latest", digest):
            answer = await proxy.get(f"{MANIFESTS}/{ref}")
            assert answer.status == 200
            assert answer.body == body
    assert found.longest < STALL
    await proxy.close()
    proxy = await start()
    async with stalls() as found:
        answer = await proxy.get(f"{MANIFESTS}/{digest}")
        assert answer.body == body, "from the disk"
    assert found.longest < STALL
    upstream.fail(status=503)
    assert (await proxy.get(f"{MANIFESTS}/{digest}")).status == 200


async def test_t45_lists_of_any_shape_do_not_stop_the_others(
    start: Start, upstream: FakeUpstream
) -> None:
    subject = content.digest(b"subject")
    body = b'{"schemaVersion":2,"manifests":[' + b"[]," * 1_398_000 + b"[]]}"
    upstream.behaviour.referrers = False
    upstream.add_manifest(REPO, body, content.OCI_INDEX, [subject.replace(":", "-")])
    proxy = await start()
    async with stalls() as found:
        answer = await proxy.get(f"/v2/{REPO}/referrers/{subject}")
        assert answer.status == 502, "a failure is no empty list"
    assert found.longest < STALL


async def test_t45_an_image_that_lists_too_much_is_never_whole(
    start: Start, upstream: FakeUpstream
) -> None:
    layer = b"a layer"
    upstream.add_blob(REPO, layer)
    entry = {"mediaType": "application/x", "digest": content.digest(layer), "size": len(layer)}
    document = {"schemaVersion": 2, "mediaType": content.OCI_MANIFEST, "layers": [entry]}
    few = json.dumps(document | {"layers": [entry] * 4096}).encode()
    more = json.dumps(document | {"layers": [entry] * 4097}).encode()
    upstream.add_manifest(REPO, few, content.OCI_MANIFEST, ["few"])
    upstream.add_manifest(REPO, more, content.OCI_MANIFEST, ["more"])
    proxy = await start()
    for tag in ("few", "more"):
        assert (await proxy.get(f"{MANIFESTS}/{tag}")).status == 200
    assert (await proxy.get(f"/v2/{REPO}/blobs/{entry['digest']}")).body == layer
    await proxy.settled()
    await proxy.close()
    proxy = await start(offline=True)
    assert (await proxy.get(f"{MANIFESTS}/few")).body == few
    assert (await proxy.get(f"{MANIFESTS}/more")).status == 404


async def test_t45_an_index_of_long_images_does_not_stop_the_others(
    start: Start, upstream: FakeUpstream
) -> None:
    """Each of its images lacks one layer, and lists the same public one thousands of times."""
    layer = b"a layer"
    upstream.add_blob(REPO, layer)
    entry = {"mediaType": "application/x", "digest": content.digest(layer), "size": len(layer)}
    children = []
    for number in range(30):
        lacks = entry | {"digest": content.digest(b"%d" % number)}
        body = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": content.OCI_MANIFEST,
                "layers": [entry] * 4000 + [lacks],
            }
        ).encode()
        upstream.add_manifest(REPO, body, content.OCI_MANIFEST, [f"child{number}"])
        children.append(
            {"mediaType": content.OCI_MANIFEST, "digest": content.digest(body), "size": len(body)}
        )
    index = {"schemaVersion": 2, "mediaType": content.OCI_INDEX, "manifests": children}
    upstream.add_manifest(REPO, json.dumps(index).encode(), content.OCI_INDEX, ["latest"])
    proxy = await start()
    assert (await proxy.get(f"/v2/{REPO}/blobs/{entry['digest']}")).body == layer
    for child in children:
        assert (await proxy.get(f"{MANIFESTS}/{child['digest']}")).status == 200
    assert (await proxy.get(f"{MANIFESTS}/latest")).status == 200
    async with stalls() as found:
        assert (await proxy.get(f"{MANIFESTS}/latest", Cache_Control="no-cache")).status == 200
    assert found.longest < STALL
