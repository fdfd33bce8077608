"""The real program, killed in the middle of an upload."""

import asyncio
from pathlib import Path

from aiohttp import ClientSession

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts import millpond
from tests.parts.seaweed import TestBucket

APP = content.image(1, layers=(120_000_000, 5000))
EVERYTHING = {*APP.blobs, *APP.manifests}


async def pulled(proxy: millpond.Millpond) -> None:
    async with ClientSession(proxy.url) as session:
        for kind, digest in [("manifests", APP.digest), *(("blobs", one) for one in APP.blobs)]:
            async with session.get(f"/v2/app/{kind}/{digest}") as response:
                assert response.status == 200
                assert content.digest(await response.read()) == digest


async def until_there(bucket: TestBucket) -> None:
    async with asyncio.timeout(60):
        while not {*bucket.objects()} >= EVERYTHING:
            await asyncio.sleep(0.05)


async def test_the_next_start_uploads_again_and_removes_the_parts(
    upstream: FakeUpstream, bucket: TestBucket, tmp_path: Path
) -> None:
    upstream.add("library/app", APP)
    proxy = millpond.Millpond(
        tmp_path, upstream.url, millpond.free_port(), {"storage": {"bucket": bucket.settings()}}
    )
    await asyncio.to_thread(proxy.start)
    try:
        await pulled(proxy)
        uploads = bucket.uploads
        async with asyncio.timeout(30):
            while not uploads():
                await asyncio.sleep(0)
        with bucket.server.stopped():
            proxy.kill()
        assert uploads()
        assert APP.layers[0] not in bucket.objects()
        upstream.clear()
        await asyncio.to_thread(proxy.start)
        await until_there(bucket)
        async with asyncio.timeout(30):
            while uploads():
                await asyncio.sleep(0.05)
        assert not upstream.requests
        assert not proxy.events("background task failed")
    finally:
        proxy.kill()
