"""Which images are pulled most: over every path that sends a manifest, and over restarts."""

import asyncio

import pytest

from proxy.core.names import Repo, Target
from proxy.runtime.tally import Tally
from proxy.services import popularity
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import WORKERS
from tests.running import Proxy, Start
from tests.web.admin.api.client import ApiClient, Document, on_socket

APP, TOOL = "docker.io/library/app:latest", "docker.io/library/tool:latest"
IMAGE = content.image(1)


async def top(api: ApiClient, **query: object) -> dict[str, Document]:
    return {one["name"]: one for one in (await api.get("top", **query))["images"]}


async def counted(api: ApiClient, name: str, pulls: int) -> Document:
    """Wait until the workers, if there are any, have reported."""
    async with asyncio.timeout(30):
        while (found := (await top(api)).get(name, {})).get("pulls") != pulls:
            await asyncio.sleep(0.05)
    return found


async def test_every_pull_counts_also_from_the_response_cache(proxy: Proxy, api: ApiClient) -> None:
    for _ in range(10):
        await proxy.get("/v2/app/manifests/latest")
        await proxy.head("/v2/tool/manifests/latest")
    await proxy.get("/v2/tool/manifests/latest")
    found = await counted(api, APP, 10)
    assert found["last_pull"] > 0
    assert (await counted(api, TOOL, 1))["bytes"] == 0
    assert list(await top(api)) == [APP, TOOL]
    assert list(await top(api, limit=1)) == [APP]
    if WORKERS == 1:
        assert proxy.app.admin._metrics.cache.prepared_answers > 0


async def test_bytes_go_to_the_images_of_the_repository(proxy: Proxy, api: ApiClient) -> None:
    await proxy.get("/v2/app/manifests/latest")
    await proxy.settled()
    size = 0
    for _ in range(5):
        size += len((await proxy.get(f"/v2/app/blobs/{IMAGE.layers[0]}")).body)
    await counted(api, APP, 1)
    async with asyncio.timeout(30):
        while (await top(api, by="bytes")).get(APP, {}).get("bytes") != size:
            await asyncio.sleep(0.05)
    assert TOOL not in await top(api, by="bytes")


async def test_a_pull_by_digest_counts_for_the_tag_that_points_there(
    proxy: Proxy, api: ApiClient, upstream: FakeUpstream
) -> None:
    """Clients look a tag up by HEAD, get its index by digest, and then one of its manifests."""
    index = upstream.add("library/multi", content.index(content.image(7), content.image(8)))
    await proxy.head("/v2/multi/manifests/latest")
    await proxy.get(f"/v2/multi/manifests/{index.digest}")
    child = next(digest for digest in index.manifests if digest != index.digest)
    await proxy.get(f"/v2/multi/manifests/{child}")
    await counted(api, "docker.io/library/multi:latest", 1)
    names = await top(api)
    assert set(names) == {"docker.io/library/multi:latest"}
    upstream.retag("library/multi", "latest", content.image(9))
    await api.change("POST", "refresh", {"image": "multi"})
    await proxy.get(f"/v2/multi/manifests/{index.digest}")
    await counted(api, f"docker.io/library/multi@{index.digest}", 1)


async def test_counts_survive_a_restart(start: Start, upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    proxy = await start()
    await proxy.get("/v2/app/manifests/latest")
    async with on_socket(proxy) as api:
        await counted(api, APP, 1)
    await proxy.get("/v2/app/manifests/latest")
    await proxy.close()
    again = await start()
    async with on_socket(again) as api:
        await counted(api, APP, 2)
        await again.get("/v2/app/manifests/latest")
        await counted(api, APP, 3)


async def test_the_table_is_bounded(
    proxy: Proxy, api: ApiClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(popularity, "MAX_EACH", 3)
    tally = proxy.app.admin._metrics.tally
    for number in range(20):
        tally.add((Target("docker.io", Repo("library/app")), f"t{number}"), 20 - number)
    assert list(await top(api)) == [f"docker.io/library/app:t{number}" for number in range(3)]


def test_too_many_keys_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("proxy.runtime.tally.MAX_KEYS", 2)
    tally, target = Tally(), Target("docker.io", Repo("app"))
    for tag in ("a", "b", "c", "a"):
        tally.add((target, tag), 1)
    other = Tally()
    other.add_json(tally.to_json())
    assert other.counts == {(target, "a"): 2, (target, "b"): 1}
    assert not tally.counts
