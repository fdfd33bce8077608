"""Tags as of a moment: by the settings, and by the path of one request."""

from datetime import UTC, datetime

import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

DAY = 86400.0
OLD, NEW = content.image(1), content.image(2)
LATEST = "/v2/app/manifests/latest"


def day(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%d")


async def travelled(start: Start, upstream: FakeUpstream, clock: Clock) -> tuple[Proxy, str]:
    """Have a tag move; return a proxy, and a day on which it pointed to the old image."""
    upstream.add("library/app", OLD, tags=["latest"])
    proxy = await start()
    assert (await proxy.get(LATEST)).body == OLD.manifest
    clock.advance(2 * DAY)
    between = day(clock())
    clock.advance(2 * DAY)
    upstream.add("library/app", NEW, tags=["latest"])
    assert (await proxy.get(LATEST)).body == NEW.manifest
    return proxy, between


async def test_a_path_leads_to_the_past(start: Start, upstream: FakeUpstream, clock: Clock) -> None:
    proxy, between = await travelled(start, upstream, clock)
    past = f"/v2/as-of/{between}/app"
    for _ in range(3):  # the third may come from the response cache
        answer = await proxy.get(f"{past}/manifests/latest")
        assert (answer.status, answer.body) == (200, OLD.manifest)
    head = await proxy.head(f"{past}/manifests/latest")
    assert head.headers["Docker-Content-Digest"] == OLD.digest
    assert (await proxy.get(f"{past}/manifests/{NEW.digest}")).body == NEW.manifest
    for digest, data in OLD.blobs.items():
        assert (await proxy.get(f"{past}/blobs/{digest}")).body == data
    assert (await proxy.get(LATEST)).body == NEW.manifest


@pytest.mark.parametrize(
    ("path", "status", "text"),
    [
        ("as-of/2001-01-01/app/manifests/latest", 404, b"first saw it at"),
        ("as-of/{between}/app/manifests/none", 404, b"has never seen it"),
        ("as-of/2999-01-01/app/manifests/latest", 400, b"in the future"),
        ("as-of/2026-02-31/app/manifests/latest", 400, b"no such day"),
    ],
)
async def test_what_was_not_seen_is_a_clear_answer(  # noqa: PLR0917 - cases and fixtures
    start: Start, upstream: FakeUpstream, clock: Clock, path: str, status: int, text: bytes
) -> None:
    proxy, between = await travelled(start, upstream, clock)
    upstream.clear()
    answer = await proxy.get(f"/v2/{path.format(between=between)}")
    assert answer.status == status
    assert text in answer.body
    assert not upstream.requests


@pytest.mark.parametrize("is_general", [True, False])
async def test_settings_keep_tags_in_the_past(
    start: Start, upstream: FakeUpstream, clock: Clock, *, is_general: bool
) -> None:
    proxy, between = await travelled(start, upstream, clock)
    await proxy.close()
    rule = {"images": ["library/*"], "as_of": between}
    proxy = await start(hub={"as_of": between} if is_general else {"tag_rules": [rule]})
    for answer in [await proxy.get(LATEST) for _ in range(3)]:
        assert answer.body == OLD.manifest
    assert (await proxy.head(LATEST)).headers["Docker-Content-Digest"] == OLD.digest
    upstream.add("library/app", NEW, tags=["other"])
    answer = await proxy.get("/v2/app/manifests/other")
    assert answer.status == 404
    assert b"has never seen it" in answer.body


async def test_a_digest_that_is_held_back_stays_so_in_the_past(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy, _ = await travelled(start, upstream, clock)
    await proxy.close()
    clock.advance(DAY)
    proxy = await start(hub={"min_age": "9d", "first_seen": "allow"})
    path = f"/v2/as-of/{day(clock())}/app/manifests/latest"
    assert (await proxy.get(path)).status == 403
    assert (await proxy.get(LATEST)).body == OLD.manifest


@pytest.mark.parametrize("pattern", ["docker.io/library/app", "docker.io/library/*"])
async def test_policies_apply_to_the_plain_name(
    start: Start, upstream: FakeUpstream, clock: Clock, pattern: str
) -> None:
    proxy, between = await travelled(start, upstream, clock)
    await proxy.close()
    proxy = await start(policies=[{"name": "no", "images": [pattern], "deny": True}])
    assert (await proxy.get(f"/v2/as-of/{between}/app/manifests/latest")).status == 403
