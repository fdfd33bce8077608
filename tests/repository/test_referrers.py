"""Referrers: from the API, the fallback tag and held manifests; never empty for a failure."""

import json
import shutil
from pathlib import Path

import pytest

from proxy.index.expiring import ExpiringRows
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.faults import body
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

IMAGE = content.image(1)
SBOM = content.artifact(IMAGE, "application/vnd.example.sbom.v1")
SIGNATURE = content.artifact(
    IMAGE, "application/vnd.example.signature.v1", annotations={"by": "me"}
)
PATH = f"/v2/library/app/referrers/{IMAGE.digest}"
FALLBACK = IMAGE.digest.replace(":", "-")


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.add("library/app", SBOM, tags=())
    upstream.add("library/app", SIGNATURE, tags=())


def entries(answer: Answer) -> dict[str, dict[str, object]]:
    assert answer.status == 200, answer.body
    assert answer.headers["Content-Type"] == content.OCI_INDEX
    document = json.loads(answer.body)
    assert (document["schemaVersion"], document["mediaType"]) == (2, content.OCI_INDEX)
    return {entry["digest"]: entry for entry in document["manifests"]}


async def test_c17_from_the_api(proxy: Proxy, upstream: FakeUpstream) -> None:
    found = entries(await proxy.get(PATH))
    assert set(found) == {SBOM.digest, SIGNATURE.digest}
    entry = found[SIGNATURE.digest]
    assert entry["artifactType"] == "application/vnd.example.signature.v1"
    assert entry["annotations"] == {"by": "me"}
    assert entry["size"] == len(SIGNATURE.manifest)
    asked = len(upstream.requests)
    assert entries(await proxy.get(PATH)) == found
    assert len(upstream.requests) == asked


async def test_c17_filtered_by_type(proxy: Proxy) -> None:
    kind = "application/vnd.example.sbom.v1"
    answer = await proxy.get(f"{PATH}?artifactType={kind}")
    assert set(entries(answer)) == {SBOM.digest}
    assert answer.headers["OCI-Filters-Applied"] == "artifactType"
    assert "OCI-Filters-Applied" not in (await proxy.get(PATH)).headers
    assert not entries(await proxy.get(f"{PATH}?artifactType=application/none"))


async def test_a_manifest_without_referrers_has_an_empty_list(proxy: Proxy) -> None:
    random = content.digest(b"random")
    assert not entries(await proxy.get(f"/v2/library/app/referrers/{random}"))
    assert (await proxy.get("/v2/library/app/referrers/sha256:bad")).status == 400


async def test_c17_from_the_fallback_tag(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.behaviour.referrers = False
    assert not entries(await proxy.get(PATH)), "neither API nor tag: there are none"
    upstream.add("library/app", content.index(SBOM), tags=[FALLBACK])
    assert not entries(await proxy.get(PATH)), "believed for a while"


async def test_c17_the_fallback_tag_is_checked_often(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy = await start(freshness={"negative_ttl": 0})
    upstream.behaviour.referrers = False
    assert not entries(await proxy.get(PATH))
    upstream.add("library/app", content.index(SBOM), tags=[FALLBACK])
    clock.advance(31)
    assert set(entries(await proxy.get(PATH))) == {SBOM.digest}


@pytest.mark.parametrize("status", [500, 503, 429, 403])
async def test_c17_a_failure_is_never_an_empty_list(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock, status: int
) -> None:
    upstream.fail(status, kind="referrers")
    expected = {500: 502, 503: 502}.get(status, status)
    assert (await proxy.get(PATH)).status == expected
    upstream.heal()
    found = entries(await proxy.get(PATH))
    upstream.fail(status, kind="referrers")
    clock.advance(31)
    answer = await proxy.get(PATH)
    if status == 403:
        assert answer.status == 403, "a denial is an answer"
    else:
        assert entries(answer) == found
        assert "Warning" in answer.headers


async def test_c17_a_failing_fallback_is_never_an_empty_list(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.behaviour.referrers = False
    upstream.fail(503, kind="manifest")
    assert (await proxy.get(PATH)).status == 502


async def test_an_answer_that_is_not_an_index_means_that_there_is_no_api(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fault(body(b"<html>", "text/html"), kind="referrers")
    upstream.add("library/app", content.index(SIGNATURE), tags=[FALLBACK])
    assert set(entries(await proxy.get(PATH))) == {SIGNATURE.digest}


async def test_all_pages_are_read(proxy: Proxy, upstream: FakeUpstream) -> None:
    upstream.behaviour.page_size = 1
    assert set(entries(await proxy.get(PATH))) == {SBOM.digest, SIGNATURE.digest}


async def test_offline_referrers_come_from_held_manifests(
    start: Start, upstream: FakeUpstream, proxy: Proxy
) -> None:
    assert (await proxy.get(f"/v2/library/app/manifests/{SBOM.digest}")).status == 200
    await proxy.close()
    upstream.clear()
    offline = await start(offline=True)
    found = entries(await offline.get(PATH))
    assert set(found) == {SBOM.digest}
    assert found[SBOM.digest]["artifactType"] == "application/vnd.example.sbom.v1"
    assert not entries(await offline.get(f"/v2/library/app/referrers/{SBOM.digest}"))
    assert not upstream.requests


async def test_upstreams_list_survives_a_restart(
    start: Start, upstream: FakeUpstream, proxy: Proxy, clock: Clock
) -> None:
    found = entries(await proxy.get(PATH))
    await proxy.close()
    upstream.clear()
    proxy = await start()
    assert entries(await proxy.get(PATH)) == found, "still fresh"
    assert not upstream.requests
    clock.advance(31)
    upstream.fail(503)
    answer = await proxy.get(PATH)
    assert entries(answer) == found
    assert "Warning" in answer.headers
    await proxy.close()
    assert entries(await (await start(offline=True)).get(PATH)) == found


async def test_a_lost_list_is_requested_again(
    start: Start, upstream: FakeUpstream, proxy: Proxy
) -> None:
    assert (await proxy.get(f"/v2/library/app/manifests/{SBOM.digest}")).status == 200
    found = entries(await proxy.get(PATH))
    await proxy.close()
    shutil.rmtree(proxy.storage / "index" / "expiring")
    upstream.clear()
    proxy = await start()
    assert entries(await proxy.get(PATH)) == found
    assert upstream.count("GET", "referrers") == 1
    await proxy.close()
    shutil.rmtree(proxy.storage / "index" / "expiring")
    offline = await start(offline=True)
    assert set(entries(await offline.get(PATH))) == {SBOM.digest}, "the held one names its subject"


@pytest.mark.parametrize("row", [5, [], [1.0, 5], ["x", []], [None, []]])
async def test_an_invalid_row_is_replaced_by_upstreams_list(
    start: Start, tmp_path: Path, row: object
) -> None:
    async with ExpiringRows(tmp_path / "cache/index/expiring", on_error=lambda: None) as rows:
        await rows.set(("referrers", "docker.io", "library/app", IMAGE.digest), row, 3600)
    proxy = await start()
    assert set(entries(await proxy.get(PATH))) == {SBOM.digest, SIGNATURE.digest}
    assert proxy.stats["cache"]["storage_errors"] == 1


async def test_listed_public_content_is_pulled_without_confirmation(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    await proxy.get(PATH)
    upstream.clear()
    assert (await proxy.get(f"/v2/library/app/manifests/{SBOM.digest}")).body == SBOM.manifest
    assert [request.method for request in upstream.requests] == ["GET"]


async def test_a_repository_without_a_list_of_tags_keeps_its_referrers(
    proxy: Proxy, upstream: FakeUpstream, clock: Clock
) -> None:
    found = entries(await proxy.get(PATH))
    upstream.fail(404, kind="tags")
    assert (await proxy.get("/v2/library/app/tags/list")).status == 404
    upstream.fail(503)
    clock.advance(31)
    assert entries(await proxy.get(PATH)) == found
