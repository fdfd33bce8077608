"""Absences: believed for a while, over a restart too where that is safe, and never for longer."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxy.index.expiring import ExpiringRows
from proxy.repository import negative_cache
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

IMAGE = content.image(1)
TAG = "/v2/app/manifests/latest"
DIGEST = f"/v2/app/manifests/{IMAGE.digest}"
HOUR: dict[str, Any] = {"freshness": {"negative_ttl": "1h"}}


async def absent(proxy: Proxy, *paths: str) -> None:
    for path in paths or (TAG, DIGEST):
        assert (await proxy.get(path)).status == 404
    await proxy.close()


def asked(upstream: FakeUpstream) -> int:
    return upstream.count(kind="manifest")


async def test_an_absence_survives_a_restart(start: Start, upstream: FakeUpstream) -> None:
    await absent(await start(**HOUR))
    assert asked(upstream) == 2
    for _ in range(2):
        proxy = await start(**HOUR)
        answer = await proxy.get(TAG)
        assert (answer.status, b"MANIFEST_UNKNOWN" in answer.body) == (404, True)
        await absent(proxy)
    assert asked(upstream) == 2


async def test_an_absence_ends_with_its_ttl_over_a_restart(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    await absent(await start(**HOUR))
    clock.advance(3601)
    await absent(await start(**HOUR))
    assert asked(upstream) == 4


async def test_a_shorter_ttl_applies_to_saved_absences(
    start: Start, upstream: FakeUpstream
) -> None:
    await absent(await start(**HOUR))
    upstream.add("library/app", IMAGE)
    proxy = await start(freshness={"negative_ttl": 0})
    assert (await proxy.get(TAG)).status == 200


async def test_a_short_absence_is_not_saved(start: Start, upstream: FakeUpstream) -> None:
    await absent(await start(freshness={"negative_ttl": "59s"}))
    await absent(await start(freshness={"negative_ttl": "1h"}))
    assert asked(upstream) == 4


async def test_no_cache_checks_a_saved_absence(start: Start, upstream: FakeUpstream) -> None:
    await absent(await start(**HOUR))
    upstream.add("library/app", IMAGE)
    proxy = await start(**HOUR)
    assert (await proxy.get(TAG)).status == 404
    assert (await proxy.get(TAG, Cache_Control="no-cache")).status == 200
    assert (await proxy.get(TAG)).status == 200


async def test_content_pulled_since_is_not_absent_after_a_restart(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    await absent(await start(**HOUR))
    upstream.add("library/app", IMAGE)
    proxy = await start(**HOUR)
    assert (await proxy.get(TAG, Cache_Control="no-cache")).status == 200
    await proxy.close()
    for blob in (proxy.storage / "blobs").glob("*/*"):
        blob.unlink()  # the manifest must come from upstream again
    clock.advance(600)
    proxy = await start(**HOUR)
    assert (await proxy.get(TAG)).status == 200
    assert (await proxy.get(DIGEST)).status == 200


async def test_a_digest_pulled_by_its_tag_is_not_absent(
    start: Start, upstream: FakeUpstream
) -> None:
    proxy = await start(memory={"manifests": 1}, **HOUR)
    assert (await proxy.get(DIGEST)).status == 404
    upstream.add("library/app", IMAGE)
    assert (await proxy.get(TAG)).status == 200
    for blob in (proxy.storage / "blobs").glob("*/*"):
        blob.unlink()
    assert (await proxy.get(DIGEST)).status == 200


async def test_an_absence_does_not_apply_to_another_address(
    start: Start, upstream: FakeUpstream
) -> None:
    await absent(await start(**HOUR))
    async with FakeUpstream() as other:
        other.add("library/app", IMAGE)
        proxy = await start(hub={"url": other.url}, **HOUR)
        assert (await proxy.get(TAG)).status == 200


async def test_absences_of_a_registry_with_credentials_are_not_saved(
    start: Start, upstream: FakeUpstream
) -> None:
    hub = {"username": "user", "password": "secret"}
    await absent(await start(hub=hub, **HOUR))
    await absent(await start(**HOUR))
    assert asked(upstream) == 4
    await absent(await start(hub=hub, **HOUR))
    assert asked(upstream) == 6, "and those of anonymous clients do not hold for them"


async def test_absences_of_a_removed_upstream_are_dropped(
    start: Start, upstream: FakeUpstream
) -> None:
    extra = {"upstreams": {"extra": {"url": upstream.url}}}
    await absent(await start(**extra, **HOUR), "/v2/extra/app/manifests/latest")
    await absent(await start(**HOUR), TAG)


async def test_the_newest_absences_are_saved(
    start: Start, upstream: FakeUpstream, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(negative_cache, "MAX_SAVED", 2)
    proxy = await start(**HOUR)
    for tag in "abc":
        assert (await proxy.get(f"/v2/app/manifests/{tag}")).status == 404
        clock.advance(1)
    await proxy.close()
    upstream.clear()
    await absent(await start(**HOUR), *(f"/v2/app/manifests/{tag}" for tag in "abc"))
    assert [request.reference for request in upstream.requests] == ["a"]


@pytest.mark.parametrize("row", [5, [5], [["x"]], [["soon", "u", "docker.io", "app", "a", "m"]]])
async def test_an_invalid_row_is_ignored(
    start: Start, upstream: FakeUpstream, tmp_path: Path, row: object
) -> None:
    async with ExpiringRows(tmp_path / "cache/index/expiring", on_error=lambda: None) as rows:
        await rows.set(("absences", "ManifestUnknown"), row, 3600)
    proxy = await start(**HOUR)
    assert proxy.stats["cache"]["storage_errors"] == 1
    assert (await proxy.get(TAG)).status == 404
    assert asked(upstream) == 1


async def test_no_absence_is_on_the_disk_while_the_cache_runs(
    start: Start, upstream: FakeUpstream
) -> None:
    """A killed process leaves none behind that a pull has proven wrong."""
    await absent(await start(**HOUR))
    proxy = await start(**HOUR)
    file = proxy.storage / "index" / "expiring" / "cache.db"
    with closing(sqlite3.connect(file)) as connection:
        assert connection.execute("SELECT count(*) FROM Cache").fetchone() == (0,)
