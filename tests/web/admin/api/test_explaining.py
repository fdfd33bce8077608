"""Explanations of images, branch by branch, without a request to a registry and without a use."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.content import Image, Index
from tests.fakes.registry import RateLimit
from tests.fakes.upstream import FakeUpstream
from tests.repository.test_cool_downs import created
from tests.running import Proxy, Start
from tests.web.admin.api.client import on_socket

DAY = 86400.0
SECRET = "a-secret-of-alice"

Explain = Callable[..., Awaitable[dict[str, Any]]]
Started = Callable[..., Awaitable[tuple[Proxy, Explain]]]


@pytest.fixture
async def explaining(start: Start, upstream: FakeUpstream) -> AsyncIterator[Started]:
    """Start a proxy; explaining asks upstream nothing, and never says the password."""
    async with AsyncExitStack() as stack:

        async def begin(**settings: Any) -> tuple[Proxy, Explain]:
            proxy = await start(**settings)
            client = await stack.enter_async_context(on_socket(proxy))

            async def explain(image: str, **query: str) -> dict[str, Any]:
                asked = len(upstream.requests) + len(upstream.token_requests)
                found = await client.get("explain", image=image, **query)
                assert len(upstream.requests) + len(upstream.token_requests) == asked
                assert SECRET not in str(found)
                return found

            return proxy, explain

        yield begin


@pytest.fixture
def image(upstream: FakeUpstream) -> Image:
    made = content.image(1)
    upstream.add("library/app", made)
    return made


async def pull(proxy: Proxy, image: Image, name: str = "library/app", tag: str = "latest") -> None:
    assert (await proxy.get(f"/v2/{name}/manifests/{tag}")).status == 200
    for blob in image.blobs:
        assert (await proxy.get(f"/v2/{name}/blobs/{blob}")).status == 200
    await proxy.settled()


# --- the route -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "query", "by", "repository"),
    [
        ("app", {}, ("default", ""), "docker.io/library/app"),
        ("ghcr.io/org/app", {}, ("name", "ghcr.io"), "ghcr.io/org/app"),
        ("ghcr.lan/org/app", {}, ("host", "ghcr.lan"), "ghcr.io/org/app"),
        ("localhost:5000/gh/org/app", {}, ("name", "gh"), "ghcr.io/org/app"),
        ("org/app", {"ns": "ghcr.io"}, ("ns", "ghcr.io"), "ghcr.io/org/app"),
        ("org/app", {"host": "ghcr.lan:443"}, ("host", "ghcr.lan:443"), "ghcr.io/org/app"),
        ("gh/org/app", {"host": "here"}, ("name", "gh"), "ghcr.io/org/app"),
    ],
)
async def test_what_chose_the_upstream(
    explaining: Started, name: str, query: dict[str, str], by: tuple[str, str], repository: str
) -> None:
    hub = {"url": "http://127.0.0.1:1", "hostnames": ["ghcr.lan"], "aliases": ["gh"]}
    _, explain = await explaining(upstreams={"ghcr.io": hub})
    found = (await explain(name, **query))["route"]
    assert (found["by"], found["text"]) == by
    assert f"{found['upstream']}/{found['repository']}" == repository
    assert (found["url"] == hub["url"]) == repository.startswith("ghcr.io")


async def test_a_digest_alone_names_no_repository(explaining: Started, image: Image) -> None:
    proxy, _ = await explaining()
    async with on_socket(proxy) as api:
        told = await api.ask("GET", "explain", image=image.digest)
        assert (told.status, "name the repository too" in told.error[1]) == (400, True)
        told = await api.ask("GET", "explain", image="elsewhere.example/app")
        assert (told.status, "not a configured upstream" in told.error[1]) == (404, True)


# --- the registry ----------------------------------------------------------------------------


async def test_scope_and_kind_of_credentials(explaining: Started, upstream: FakeUpstream) -> None:
    _, explain = await explaining(hub={"username": "alice", "password": SECRET})
    registry = (await explain("app"))["registry"]
    assert registry["scope"] == "repository:library/app:pull"
    assert (registry["credentials"], registry["circuit"]) == ("password", "closed")
    assert registry["rate_limit"] is None


async def test_an_upstream_that_is_asked_as_its_clients(explaining: Started) -> None:
    _, explain = await explaining(hub={"credentials": "caller"})
    found = await explain("app")
    assert found["registry"]["credentials"] == "caller"
    assert found["pull"]["because"].endswith("the registry has to confirm each client")


async def test_the_rate_limit_as_last_reported(
    explaining: Started, upstream: FakeUpstream, image: Image, clock: Clock
) -> None:
    upstream.behaviour.rate_limit = RateLimit(limit=100, remaining=6)
    proxy, explain = await explaining(freshness={"stale_while_revalidate": 0})
    await pull(proxy, image)
    found = await explain("app")
    limit = {"limit": 100, "remaining": 5, "is_scarce": True}
    assert found["registry"]["rate_limit"] == limit
    assert "nearly used up" in found["freshness"]["changed_by"]
    assert found["freshness"]["fresh_until"] > clock() + 300
    clock.advance(300 * 100 + 1)
    found = await explain("app")
    assert found["registry"]["rate_limit"] is None  # its window is over
    assert found["pull"]["answer"] == "check"


async def test_what_is_asked_before_the_registry(explaining: Started, tmp_path: Path) -> None:
    _, explain = await explaining(fallback=[str(tmp_path / "usb")], offline=True)
    found = await explain("app")
    assert found["registry"]["sources"] == [f"the directory {tmp_path}/usb"]
    assert f"the directory {tmp_path}/usb may have it" in found["offline"]["because"]


# --- what is held, and what a pull does ------------------------------------------------------


async def test_an_image_that_was_never_seen(explaining: Started, upstream: FakeUpstream) -> None:
    _, explain = await explaining()
    found = await explain("app:1.0")
    assert found["image"] == "docker.io/library/app:1.0"
    assert (found["held"]["digest"], found["held"]["state"]) == (None, "absent")
    assert found["freshness"]["checked_at"] is None
    assert found["pull"]["answer"] == "fetch"
    assert found["pull"]["costs"] == ["GET of the manifest"]
    assert found["offline"] == {
        "is_served": False,
        "because": "its manifest is not in the cache",
    }
    assert found["keeping"]["last_used"] is None
    assert not upstream.requests


async def test_a_tag_grows_old(
    explaining: Started, upstream: FakeUpstream, image: Image, clock: Clock
) -> None:
    proxy, explain = await explaining(
        freshness={"tag_ttl": "5m", "stale_while_revalidate": "1h", "stale_if_error": "1d"}
    )
    await pull(proxy, image)
    checked = clock()
    found = await explain("app")
    fresh = found["freshness"]
    assert (fresh["checked_at"], fresh["fresh_until"]) == (checked, checked + 300)
    assert (fresh["served_until"], fresh["kept_until"]) == (checked + 3900, checked + 300 + DAY)
    assert (found["pull"]["answer"], found["pull"]["costs"]) == ("serve", [])
    clock.advance(301)
    found = await explain("app")
    assert found["pull"]["answer"] == "serve-then-check"
    assert found["pull"]["costs"] == ["HEAD of the manifest"]
    clock.advance(3600)
    found = await explain("app")
    assert (found["pull"]["answer"], found["pull"]["costs"]) == ("check", ["HEAD of the manifest"])
    before = upstream.count()
    await proxy.get("/v2/app/manifests/latest")
    assert (upstream.count() - before, upstream.requests[-1].method) == (1, "HEAD")


async def test_a_manifest_that_is_gone_is_fetched(
    explaining: Started, upstream: FakeUpstream, image: Image, clock: Clock
) -> None:
    proxy, explain = await explaining(freshness={"stale_while_revalidate": 0})
    await pull(proxy, image)
    await proxy.app.content.evictor.evict(1 << 40)
    found = await explain("app")
    assert (found["held"]["digest"], found["held"]["state"]) == (image.digest, "absent")
    assert found["pull"]["answer"] == "fetch"
    assert "the tag is fresh, but its manifest is not in the cache" in found["pull"]["because"]
    clock.advance(301)
    found = await explain("app")
    assert found["pull"]["answer"] == "check"
    assert found["pull"]["costs"] == ["HEAD of the manifest", "GET of the manifest"]


async def test_what_is_missing_by_platform(explaining: Started, upstream: FakeUpstream) -> None:
    index = content.multi_platform()
    assert isinstance(index, Index)
    upstream.add("library/app", index)
    amd, arm = index.children
    assert isinstance(amd, Image)
    proxy, explain = await explaining()
    await proxy.get("/v2/app/manifests/latest")
    await proxy.get(f"/v2/app/manifests/{amd.digest}")
    await proxy.get(f"/v2/app/blobs/{amd.config}")
    await proxy.settled()
    found = await explain("app")
    first, second = found["held"]["parts"]
    assert (first["platform"], first["state"]) == ("linux/amd64", "partial")
    lacking = {one["digest"]: one["size"] for one in first["missing"]}
    assert lacking == dict(zip(amd.layers, (1024, 2048), strict=True))
    assert (first["missing_pieces"], first["missing_bytes"]) == (2, 3072)
    assert (second["platform"], second["digest"], second["state"]) == (
        "linux/arm64",
        arm.digest,
        "absent",
    )
    assert found["offline"]["is_served"] is False
    assert "pieces" in found["offline"]["because"] or "missing" in found["offline"]["because"]
    for layer in amd.layers:
        await proxy.get(f"/v2/app/blobs/{layer}")
    await proxy.settled()
    found = await explain("app")
    assert found["held"]["parts"][0]["state"] == "whole"
    assert found["offline"] == {
        "is_served": True,
        "because": "all of linux/amd64 is in the cache",
    }


async def test_a_digest(explaining: Started, upstream: FakeUpstream, image: Image) -> None:
    upstream.add("library/twin", image)
    proxy, explain = await explaining(hub={"username": "alice", "password": SECRET})
    found = await explain(f"app@{image.digest}")
    assert (found["pull"]["answer"], found["freshness"]) == ("fetch", None)
    await pull(proxy, image)
    found = await explain(f"app@{image.digest}")
    assert (found["pull"]["answer"], found["held"]["state"]) == ("serve", "whole")
    found = await explain(f"twin@{image.digest}")
    assert (found["pull"]["answer"], found["held"]["is_linked"]) == ("confirm", False)
    assert found["pull"]["costs"] == ["HEAD of the manifest"]
    assert "has not confirmed" in found["offline"]["because"]
    before = upstream.count(kind="manifest")
    await proxy.get(f"/v2/twin/manifests/{image.digest}")  # also begins to confirm its blobs
    assert upstream.count(kind="manifest") - before == 1
    assert upstream.count("HEAD", "manifest", image.digest) == 1


async def test_an_absence_that_is_remembered(
    explaining: Started, upstream: FakeUpstream, clock: Clock
) -> None:
    proxy, explain = await explaining(freshness={"negative_ttl": "1h"})
    assert (await proxy.get("/v2/app/manifests/no")).status == 404
    found = await explain("app:no")
    assert found["pull"]["answer"] == "refuse"
    assert "remembered for negative_ttl" in found["pull"]["because"]


async def test_a_registry_that_fails(
    explaining: Started, upstream: FakeUpstream, image: Image, clock: Clock
) -> None:
    patience = {"failures": 1, "pause": "1h", "retries": 0}
    freshness = {"stale_while_revalidate": 0, "stale_if_error": "1d"}
    proxy, explain = await explaining(patience=patience, freshness=freshness)
    await pull(proxy, image)
    await upstream.stop()
    await proxy.get("/v2/other/manifests/latest")
    found = await explain("app:new")
    assert found["registry"]["circuit"] == "open"
    assert found["pull"]["answer"] == "refuse"
    assert "and the registry fails" in found["pull"]["because"]
    clock.advance(301)
    assert (await explain("app"))["pull"]["answer"] == "stale"
    answer = await proxy.get("/v2/app/manifests/latest")
    assert answer.headers["Warning"].startswith("299")
    clock.advance(2 * DAY)
    found = await explain("app")
    assert (found["pull"]["answer"], found["pull"]["because"]) == (
        "refuse",
        "the registry fails, and no good copy may replace it",
    )


async def test_offline(explaining: Started, upstream: FakeUpstream, image: Image) -> None:
    proxy, explain = await explaining()
    await pull(proxy, image)
    await proxy.get("/v2/app/manifests/latest")
    async with on_socket(proxy) as api, api.session.post("/-/offline?value=true") as answer:
        assert answer.status == 200
    found = await explain("app")
    assert (found["registry"]["offline"], found["registry"]["offline_mode"]) == (True, "true")
    assert found["pull"] == {
        "answer": "serve",
        "because": "offline: all of it is in the cache",
        "costs": [],
    }
    assert found["freshness"]["changed_by"] == "the registry is offline, so the age does not matter"
    assert found["freshness"]["fresh_until"] is None
    found = await explain("app:other")
    assert found["pull"]["answer"] == "refuse"
    found = await explain(f"app@{content.digest(b'')}")
    assert found["pull"]["answer"] == "refuse"


# --- tags that do not follow -----------------------------------------------------------------


async def test_a_tag_that_is_held_back(
    explaining: Started, upstream: FakeUpstream, clock: Clock
) -> None:
    old, new = created(1, clock() - 30 * DAY), created(2, clock() + DAY)
    upstream.add("library/app", old)
    proxy, explain = await explaining(hub={"min_age": "3d"})
    await pull(proxy, old)
    upstream.retag("library/app", "latest", new)
    clock.advance(DAY)
    await proxy.get("/v2/app/manifests/latest", Cache_Control="no-cache")
    found = await explain("app")
    fresh = found["freshness"]
    assert (fresh["min_age"], fresh["newest"]) == (3 * DAY, new.digest)
    assert fresh["held_back_until"] == pytest.approx(clock() + 3 * DAY, abs=60)
    assert found["held"]["digest"] == old.digest
    assert found["pull"]["answer"] == "serve"


async def test_a_tag_without_an_image_that_is_old_enough(
    explaining: Started, upstream: FakeUpstream, clock: Clock
) -> None:
    new = created(2, clock() + DAY)
    upstream.add("library/app", new)
    proxy, explain = await explaining(hub={"min_age": "3d"})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 403
    found = await explain("app")
    assert found["pull"]["answer"] == "refuse"
    assert "it is too young" in found["pull"]["because"]


async def test_an_image_whose_age_is_not_known_yet(
    explaining: Started, upstream: FakeUpstream, clock: Clock
) -> None:
    old = created(1, clock() - 30 * DAY)
    upstream.add("library/app", old)
    proxy, _ = await explaining()
    await pull(proxy, old)
    await proxy.close()
    _, explain = await explaining(hub={"min_age": "3d"})
    found = await explain("app")
    assert found["pull"]["answer"] == "serve"
    assert "the time of its creation decides" in found["pull"]["because"]


async def test_a_tag_that_shows_the_past(
    explaining: Started, upstream: FakeUpstream, clock: Clock, image: Image
) -> None:
    proxy, _ = await explaining()
    await pull(proxy, image)
    await proxy.close()
    _, explain = await explaining(hub={"as_of": "2023-11-15"})
    found = await explain("app")
    assert found["freshness"]["as_of"] == 1_700_006_400
    assert found["pull"]["answer"] == "refuse"
    assert "in the future" in found["pull"]["because"]
    clock.advance(DAY)
    found = await explain("app")
    assert (found["pull"]["answer"], found["held"]["digest"]) == ("serve", image.digest)
    assert found["pull"]["because"].startswith("as_of shows the past")


# --- who, and what kind ----------------------------------------------------------------------


async def test_who_may_pull(explaining: Started) -> None:
    rules = [
        {"deny": "pull", "images": ["docker.io/bad/**"], "because": "SEC-12"},
        {"allow": "pull", "images": ["docker.io/**"], "to": ["group:dev", "network:lab"]},
    ]
    networks = {"lab": ["10.0.0.0/8"]}
    _, explain = await explaining(access={"rules": rules, "networks": networks})
    [anonymous] = (await explain("app"))["access"]
    assert (anonymous["user"], anonymous["allowed"], anonymous["rule"]) == (None, False, None)
    assert anonymous["text"] == "no rule matches"
    anonymous, ann = (await explain("app", user="ann,dev"))["access"]
    assert (ann["user"], ann["groups"], ann["allowed"], ann["rule"]) == ("ann", ["dev"], True, 2)
    assert ann["text"] == "allow pull docker.io/** to group:dev, network:lab"
    [there] = (await explain("app", address="10.1.2.3"))["access"]
    assert (there["allowed"], there["rule"], there["address"]) == (True, 2, "10.1.2.3")
    _, ann = (await explain("bad/app", user="ann,dev"))["access"]
    assert (ann["allowed"], ann["rule"], ann["because"]) == (False, 1, "SEC-12")


async def test_without_rules_everybody_may_pull(explaining: Started) -> None:
    _, explain = await explaining()
    [anonymous] = (await explain("app"))["access"]
    assert (anonymous["allowed"], anonymous["text"]) == (True, "no rules are configured")


async def test_which_policies_apply(explaining: Started, image: Image) -> None:
    policies = [
        {"name": "no-old", "images": ["docker.io/old/**"], "deny": True, "because": "EOL"},
        {"name": "small", "images": ["docker.io/library/**"], "max_image_size": "1KiB", "audit": True},
        {"name": "amd", "platforms": ["linux/amd64", "linux/arm64"], "except": ["docker.io/old/**"]},
    ]  # fmt: skip
    proxy, explain = await explaining(policies=policies)
    [old] = (await explain("old/app"))["policies"]
    assert (old["name"], old["denied"]) == ("no-old", True)
    assert old["reason"] == "denied by policy 'no-old': its repository is denied; EOL"
    small, amd = (await explain("app"))["policies"]
    assert small["demands"] == ["max_image_size: 1.0KiB"]
    assert (small["audit"], small["denied"], amd["denied"]) == (True, None, None)
    await pull(proxy, image)
    small, amd = (await explain("app"))["policies"]
    assert (small["denied"], amd["denied"]) == (True, False)
    assert "above the limit" in small["reason"]


# --- why it stays ----------------------------------------------------------------------------


async def test_explaining_an_index_is_no_use(
    explaining: Started, upstream: FakeUpstream, clock: Clock
) -> None:
    index = content.multi_platform()
    upstream.add("library/app", index)
    proxy, explain = await explaining()
    await proxy.get("/v2/app/manifests/latest")
    used = clock()
    clock.advance(60)
    for _ in range(2):
        keeping = (await explain("app"))["keeping"]
        assert keeping["last_used"] == pytest.approx(used, abs=1)
        assert keeping["oldest_use"] == pytest.approx(used, abs=1)


async def test_why_an_image_is_kept(
    explaining: Started, upstream: FakeUpstream, image: Image
) -> None:
    upstream.retag("library/app", "other", image)
    proxy, explain = await explaining(pins=["library/app:*"])
    found = (await explain("app"))["keeping"]
    assert (found["pinned_by"], found["is_protected"]) == (["library/app:*"], False)
    await pull(proxy, image)
    async with on_socket(proxy) as api:
        async with api.session.put("/-/in-use?source=node1", data=b"app:latest\n") as answer:
            assert answer.status == 200
        await api.change("PUT", "pins", {"pin": f"app@{image.digest}"})
    found = (await explain("app"))["keeping"]
    assert set(found["pinned_by"]) >= {f"docker.io/library/app@{image.digest}"}
    assert (found["in_use_by"], found["is_protected"]) == (["node1"], True)
    assert found["pin_refused"] is None
    found = (await explain(f"app@{image.digest}"))["keeping"]
    assert (found["in_use_by"], found["is_protected"]) == (["node1"], True)
    await pull(proxy, image, tag="other")
    found = (await explain("app:other"))["keeping"]
    assert (found["in_use_by"], found["is_protected"]) == (["node1"], True)


async def test_a_pin_that_is_not_honoured(
    explaining: Started, upstream: FakeUpstream, tmp_path: Path
) -> None:
    large = content.image(3, layers=(700_000, 700_000))
    upstream.add("library/app", large)
    storage = {"max_size": "2MiB", "low_mark": 0.5, "high_mark": 1.0}
    proxy, explain = await explaining(pins=["app"], storage=storage)
    await pull(proxy, large)
    found = (await explain("app"))["keeping"]
    assert found["pinned_by"] == ["docker.io/library/app:latest"]
    assert "would exceed" in found["pin_refused"]
    assert found["is_protected"] is False


async def test_when_an_image_goes(
    explaining: Started, upstream: FakeUpstream, image: Image, clock: Clock
) -> None:
    other = content.image(2)
    upstream.add("library/other", other)
    proxy, explain = await explaining(storage={"max_age": "30d", "max_size": "10MiB"})
    await pull(proxy, image)
    used = clock()
    clock.advance(60)
    await pull(proxy, other, "library/other")
    found = (await explain("app"))["keeping"]
    assert found["last_used"] == pytest.approx(used, abs=1)
    assert found["oldest_use"] == pytest.approx(used, abs=1)
    assert (found["is_protected"], found["is_next"]) == (False, True)
    assert found["expires_at"] == pytest.approx(used + 30 * DAY, abs=1)
    assert found["limit_bytes"] == found["evicts_above_bytes"] == 10 * 1024**2
    assert 0 < found["used_bytes"] < found["limit_bytes"]
    assert (await explain("other"))["keeping"]["is_next"] is False
    clock.advance(60)
    again = (await explain("app"))["keeping"]
    assert again["last_used"] == pytest.approx(used, abs=1)  # explaining is no use
