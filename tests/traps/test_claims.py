"""A claim in a manifest or from a registry gives no access to content of others."""

import asyncio
import json
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from proxy.core.names import Digest, Repo, Target
from proxy.services import oci_index
from tests.fakes import content
from tests.fakes.faults import body, digest_header, header, stall, status
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

SECRET = content.image(41, layers=(3_000, 5_000, 200_000))
OTHER = content.image(42)
CREDENTIALS = {"username": "me", "password": "sesame"}
PUBLIC = "/v2/org/public"
"""A repository of the registry that also has the secret, which is not in it."""

EVIL = "/v2/evil/app"
"""A repository of another registry."""


def entry(image: content.Image) -> content.Document:
    return {"mediaType": image.media_type, "digest": image.digest, "size": len(image.manifest)}


def listing(*entries: content.Document) -> bytes:
    document = {"schemaVersion": 2, "mediaType": content.OCI_INDEX, "manifests": entries}
    return json.dumps(document).encode()


def labelled(image: content.Image, label: str) -> bytes:
    """Return another manifest of the same configuration and layers."""
    return json.dumps(json.loads(image.manifest) | {"annotations": {"label": label}}).encode()


class Attacker:
    """A repository that its owner fills with claims about the secret."""

    def __init__(self, fake: FakeUpstream, repository: str, path: str) -> None:
        self.fake, self.repository, self.path = fake, repository, path

    async def list_layers(self, proxy: Proxy) -> None:
        claim = labelled(SECRET, "mine")
        self.fake.add_manifest(self.repository, claim, content.OCI_MANIFEST, ["layers"])
        assert (await proxy.get(f"{self.path}/manifests/layers")).body == claim

    async def list_manifest(self, proxy: Proxy) -> None:
        claim = listing(entry(SECRET), entry(OTHER))
        self.fake.add_manifest(self.repository, claim, content.OCI_INDEX, ["index"])
        assert (await proxy.get(f"{self.path}/manifests/index")).body == claim

    async def refer_by_api(self, proxy: Proxy) -> None:
        self.fake.fault(body(listing(entry(SECRET)), content.OCI_INDEX), kind="referrers")
        answer = await proxy.get(f"{self.path}/referrers/{OTHER.digest}")
        assert SECRET.digest in answer.body.decode()

    async def refer_by_tag(self, proxy: Proxy) -> None:
        self.fake.behaviour.referrers = False
        tag, claim = OTHER.digest.replace(":", "-"), listing(entry(SECRET))
        self.fake.add_manifest(self.repository, claim, content.OCI_INDEX, [tag])
        answer = await proxy.get(f"{self.path}/referrers/{OTHER.digest}")
        assert SECRET.digest in answer.body.decode()

    async def point_tag(self, proxy: Proxy) -> None:
        self.fake.fault(
            status(200),
            digest_header(SECRET.digest),
            header("Content-Type", SECRET.media_type),
            header("Content-Length", str(len(SECRET.manifest))),
            method="HEAD",
            reference="latest",
            repository=self.repository,
        )
        answer = await proxy.head(f"{self.path}/manifests/latest")
        assert answer.headers["Docker-Content-Digest"] == SECRET.digest

    async def gets_nothing(self, proxy: Proxy) -> None:
        """Try to read everything of the secret under the attacker's name."""
        for method in ("HEAD", "GET"):
            for digest in SECRET.blobs:
                answer = await proxy.ask(method, f"{self.path}/blobs/{digest}")
                assert answer.status == 404, (method, answer.body)
            by_digest = await proxy.get(f"{self.path}/manifests/{SECRET.digest}")
            assert by_digest.status == 404, by_digest.body
        assert (await proxy.get(f"{self.path}/manifests/latest")).body == OTHER.manifest


CLAIMS: list[Callable[[Attacker, Proxy], Awaitable[None]]] = [
    Attacker.list_layers,
    Attacker.list_manifest,
    Attacker.refer_by_api,
    Attacker.refer_by_tag,
    Attacker.point_tag,
]


@pytest.fixture
async def evil() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        fake.add("app", OTHER)
        yield fake


@pytest.fixture
async def guarded(upstream: FakeUpstream) -> None:
    """Make the upstream one that gives nothing without credentials, the secret included."""
    upstream.auth.scheme = "basic"
    upstream.auth.users = {"me": "sesame"}
    upstream.add("org/secret", SECRET)
    upstream.add("org/public", OTHER)


async def pull(proxy: Proxy, name: str, image: content.Image = SECRET) -> None:
    assert (await proxy.get(f"/v2/{name}/manifests/latest")).body == image.manifest
    for digest, data in image.blobs.items():
        assert (await proxy.get(f"/v2/{name}/blobs/{digest}")).body == data
    await proxy.settled()


async def linked(proxy: Proxy, name: str, digests: Any) -> None:
    """Return once a repository of the first upstream is known to hold all of these."""
    target = Target("docker.io", Repo(name))
    async with asyncio.timeout(60):
        for digest in digests:
            while not await proxy.app.content.links.is_confirmed(target, Digest(digest)):
                await asyncio.sleep(0.002)


def started(start: Start, evil: FakeUpstream, **settings: Any) -> Awaitable[Proxy]:
    return start(hub=CREDENTIALS, upstreams={"evil": {"url": evil.url}}, **settings)


@pytest.mark.usefixtures("guarded")
@pytest.mark.parametrize("where", ["same upstream", "other upstream"])
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
@pytest.mark.parametrize("when", ["before", "after"])
async def test_t48_a_claim_opens_no_private_content(
    start: Start,
    upstream: FakeUpstream,
    evil: FakeUpstream,
    *,
    where: str,
    claim: Callable[[Attacker, Proxy], Awaitable[None]],
    when: str,
) -> None:
    proxy = await started(start, evil)
    attacker = Attacker(evil, "app", EVIL)
    if where == "same upstream":
        attacker = Attacker(upstream, "org/public", PUBLIC)
    if when == "after":
        await pull(proxy, "org/secret")
    await claim(attacker, proxy)
    if when == "before":
        await pull(proxy, "org/secret")
    await attacker.gets_nothing(proxy)
    await pull(proxy, "org/secret")


@pytest.mark.usefixtures("guarded")
async def test_t48_a_tag_that_points_to_private_content_is_served_by_nobody_else(
    start: Start, evil: FakeUpstream
) -> None:
    proxy = await started(start, evil, freshness={"tag_ttl": "0s", "stale_while_revalidate": "0s"})
    await pull(proxy, "org/secret")
    await Attacker(evil, "app", EVIL).point_tag(proxy)
    await evil.stop()
    for _ in range(2):
        assert (await proxy.get(f"{EVIL}/manifests/latest")).status == 502
    await proxy.close()
    names = (proxy.storage / "index.json").read_text()
    assert "org/secret:latest" in names
    assert "evil/app:latest" not in names, "nor does the layout's index call it so"


@pytest.mark.usefixtures("guarded")
async def test_t48_what_upstream_confirms_is_asked_once_beside_the_pull(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    upstream.add("org/copy", SECRET)
    copy = labelled(SECRET, "copy")
    upstream.add_manifest("org/copy", copy, content.OCI_MANIFEST, ["latest"])
    proxy = await started(start, evil)
    await pull(proxy, "org/secret")
    upstream.clear()
    gate = upstream.hold(method="HEAD", kind="blob")
    async with asyncio.timeout(60):
        assert (await proxy.get("/v2/org/copy/manifests/latest")).body == copy
    first = SECRET.layers[0]
    joined = asyncio.create_task(proxy.get(f"/v2/org/copy/blobs/{first}"))
    await upstream.until(lambda: upstream.count("HEAD", "blob") == len(SECRET.blobs))
    gate.set()
    assert (await joined).body == SECRET.blobs[first]
    await linked(proxy, "org/copy", SECRET.blobs)
    for digest in SECRET.blobs:
        answer = await proxy.get(f"/v2/org/copy/blobs/{digest}")
        assert answer.headers["Cache-Status"] == "Millpond; hit"
    assert upstream.count("HEAD", "blob") == len(SECRET.blobs), "each once"
    assert upstream.count("GET", "blob") == 0
    await upstream.stop()
    await proxy.close()
    proxy = await started(start, evil, offline=True)
    assert (await proxy.get("/v2/org/copy/manifests/latest")).body == copy, "whole, and remembered"


@pytest.mark.usefixtures("guarded")
async def test_t48_the_manifests_of_an_index_are_confirmed_with_what_they_list(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    whole = listing(entry(SECRET), entry(OTHER))
    for repository in ("org/one", "org/two"):
        upstream.add(repository, SECRET, ())
        upstream.add(repository, OTHER, ())
        upstream.add_manifest(repository, whole, content.OCI_INDEX, ["latest"])
    proxy = await started(start, evil)
    await pull(proxy, "org/secret")
    upstream.clear()
    assert (await proxy.get("/v2/org/two/manifests/latest")).body == whole
    await linked(proxy, "org/two", [SECRET.digest, *SECRET.blobs])
    heads = [record.reference for record in upstream.requests if record.method == "HEAD"]
    assert sorted(map(str, heads)) == sorted([SECRET.digest, *SECRET.blobs])
    await upstream.stop()
    for digest, data in SECRET.blobs.items():
        assert (await proxy.get(f"/v2/org/two/blobs/{digest}")).body == data


@pytest.mark.usefixtures("guarded")
async def test_t48_a_rate_limit_ends_the_questions_and_the_next_check_asks_again(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    many = content.image(43, layers=(100,) * 30)
    upstream.add("org/secret", many)
    upstream.add("org/copy", many)
    proxy = await started(start, evil, freshness={"tag_ttl": "0s", "stale_while_revalidate": "0s"})
    await pull(proxy, "org/secret", many)
    upstream.clear()
    limit = upstream.fail(429, method="HEAD", kind="blob")
    assert (await proxy.get("/v2/org/copy/manifests/latest")).status == 200
    await until(lambda: "link check ended early" in proxy.log.getvalue())
    assert 0 < upstream.count("HEAD", "blob") < 2 * 16 - 1, "not all of 31"
    layer = many.layers[-1]
    assert (await proxy.get(f"/v2/org/copy/blobs/{layer}")).body == many.blobs[layer], (
        "a limit of questions fails no pull"
    )
    upstream.rules.remove(limit)
    assert (await proxy.get("/v2/org/copy/manifests/latest")).status == 200
    await linked(proxy, "org/copy", many.blobs)


@pytest.mark.usefixtures("guarded")
async def test_t48_questions_that_are_open_do_not_hold_up_the_end(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    upstream.add("org/copy", SECRET)
    proxy = await started(start, evil)
    await pull(proxy, "org/secret")
    upstream.clear()
    upstream.hold(method="HEAD", kind="blob")
    assert (await proxy.get("/v2/org/copy/manifests/latest")).status == 200
    await upstream.until(lambda: upstream.count("HEAD", "blob") > 0)
    async with asyncio.timeout(60):
        await proxy.close()


@pytest.mark.parametrize("held", ["before", "after"])
async def test_t48_public_content_needs_no_question(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream, held: str
) -> None:
    upstream.add("library/app", SECRET)
    copy = labelled(SECRET, "copy")
    evil.add("copy", SECRET)
    evil.add_manifest("copy", copy, content.OCI_MANIFEST, ["latest"])
    proxy = await start(upstreams={"evil": {"url": evil.url}})
    path = "/v2/evil/copy/manifests/latest"
    if held == "after":
        assert (await proxy.get(path)).body == copy
    await pull(proxy, "app")
    await proxy.close()
    proxy = await start(upstreams={"evil": {"url": evil.url}})
    if held == "before":
        assert (await proxy.get(path)).body == copy
    else:
        assert (await proxy.get(path, Cache_Control="no-cache")).body == copy
        await until(lambda: evil.count("HEAD", "manifest") > 0)
    for digest, data in SECRET.blobs.items():
        assert (await proxy.get(f"/v2/evil/copy/blobs/{digest}")).body == data
    assert evil.count(kind="blob") == 0, "neither asked for nor about"


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("name", ["other", "evil/app"])
async def test_t48_a_manifest_requested_under_a_wrong_name_opens_no_blobs(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream, name: str, *, restarted: bool
) -> None:
    upstream.add("library/app", SECRET)
    upstream.add("library/other", OTHER)
    proxy = await start(upstreams={"evil": {"url": evil.url}})
    await pull(proxy, "app")
    if restarted:
        await proxy.close()
        proxy = await start(upstreams={"evil": {"url": evil.url}})
    for method in ("HEAD", "GET"):
        for digest in (SECRET.digest, *SECRET.blobs):
            kind = "manifests" if digest == SECRET.digest else "blobs"
            answer = await proxy.ask(method, f"/v2/{name}/{kind}/{digest}")
            assert answer.status == 404, (method, kind, answer.body)


@pytest.mark.usefixtures("guarded")
async def test_t48_a_lost_index_makes_no_claim_true(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(oci_index, "PUBLISH_SECONDS", 0.01)
    proxy = await started(start, evil)
    await pull(proxy, "org/secret")
    attackers = [Attacker(evil, "app", EVIL), Attacker(upstream, "org/public", PUBLIC)]
    for attacker in attackers:
        await attacker.list_layers(proxy)
        await attacker.list_manifest(proxy)
    files = len(proxy.held())
    await proxy.close()
    shutil.rmtree(proxy.storage / "index")
    proxy = await started(start, evil)
    await until(lambda: proxy.stats["cache"]["files"] == files)
    for attacker in attackers:
        await attacker.gets_nothing(proxy)
    await pull(proxy, "org/secret")


@pytest.mark.usefixtures("guarded")
async def test_t48_what_a_crash_leaves_makes_no_claim_true(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    proxy = await started(start, evil)
    await pull(proxy, "org/secret")
    attacker = Attacker(evil, "app", EVIL)
    await attacker.list_layers(proxy)
    await attacker.list_manifest(proxy)
    files = len(proxy.held())
    await proxy.close()
    data = b"a blob whose row was lost"
    name = content.digest(data).partition(":")[2]
    (proxy.storage / "blobs/sha256" / name).write_bytes(data)
    proxy = await started(start, evil)
    await until(lambda: proxy.stats["cache"]["files"] == files + 1)
    await until(lambda: "reconciled" in proxy.log.getvalue())
    await attacker.gets_nothing(proxy)


@pytest.mark.parametrize("secured", [False, True])
async def test_t48_two_cold_images_share_a_layer_that_still_arrives(
    start: Start, upstream: FakeUpstream, *, secured: bool
) -> None:
    if secured:
        upstream.auth.scheme, upstream.auth.users = "basic", {"me": "sesame"}
    copy = labelled(SECRET, "copy")
    for repository in ("org/one", "org/two"):
        upstream.add(repository, SECRET)
    upstream.add_manifest("org/two", copy, content.OCI_MANIFEST, ["latest"])
    proxy = await start(hub=CREDENTIALS if secured else {})
    for repository in ("org/one", "org/two"):
        assert (await proxy.get(f"/v2/{repository}/manifests/latest")).status == 200
    release = upstream.stall(100, kind="blob", method="GET")
    first = [proxy.client.get(f"/v2/org/one/blobs/{digest}") for digest in SECRET.blobs]
    second = [proxy.client.get(f"/v2/org/two/blobs/{digest}") for digest in SECRET.blobs]
    responses = [await response for response in (*first, *second)]
    release.set()
    assert [await each.read() for each in responses] == [*SECRET.blobs.values()] * 2
    await proxy.settled()
    assert proxy.numbers["joins"] == len(SECRET.blobs)
    assert upstream.count("HEAD", "blob") == (len(SECRET.blobs) if secured else 0)
    await proxy.close()
    await upstream.stop()
    proxy = await start(offline=True)
    assert (await proxy.get("/v2/org/two/manifests/latest")).body == copy
    for digest, data in SECRET.blobs.items():
        assert (await proxy.get(f"/v2/org/two/blobs/{digest}")).body == data


@pytest.mark.usefixtures("guarded")
async def test_t48_a_limit_of_questions_fails_no_pull_of_what_arrives(
    start: Start, upstream: FakeUpstream, evil: FakeUpstream
) -> None:
    upstream.add("org/copy", SECRET)
    layer = SECRET.layers[-1]
    proxy = await started(start, evil)
    release = asyncio.Event()
    upstream.fault(stall(100_000, release), kind="blob", method="GET", times=1)
    first = asyncio.create_task(proxy.get(f"/v2/org/secret/blobs/{layer}"))
    await until(lambda: any(flight["bytes"] > 0 for flight in proxy.stats["downloads"]))
    upstream.fail(429, method="HEAD")
    assert (await proxy.get(f"/v2/org/copy/blobs/{layer}")).body == SECRET.blobs[layer]
    release.set()
    assert (await first).body == SECRET.blobs[layer]
