"""A cache that the version with layout 2 wrote is served, with all that its index knew.

`data/layout2/make.py` made the two directories: one is from a program that was stopped, the other
from a program that was killed during a download. The JSON files beside them have the facts.
"""

import hashlib
import json
import shutil
import tarfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, UnixConnector

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

DATA = Path(__file__).parent / "data" / "layout2"
LAB = "registry.lab"
NO_REGISTRY = "http://127.0.0.1:9"
CREDENTIALS = {"username": "ann", "password": "password-of-ann"}
NAME, PINS = "dev.millpond.image", "dev.millpond.pins"

Fact = dict[str, Any]
Open = Callable[..., Awaitable[Proxy]]


def repository(fact: Fact) -> str:
    return f"{fact['upstream']}/{fact['repository']}"


def name_of(tag: Fact) -> str:
    return f"{repository(tag)}:{tag['tag']}"


@dataclass(frozen=True)
class Facts:
    """What the index of layout 2 knew. `blobs` are by digest, the coldest first."""

    said: Fact

    @cached_property
    def blobs(self) -> dict[str, Fact]:
        return {blob["digest"]: blob for blob in self.said["blobs"]}

    @cached_property
    def tags(self) -> dict[str, Fact]:
        """Where each tag points, by its full name."""
        return {name_of(tag): tag["now"] for tag in self.said["tags"] if tag["now"]}

    @cached_property
    def understood(self) -> list[str]:
        """The digests without the manifests that every start reads, and so uses, once more."""
        return [one for one, blob in self.blobs.items() if blob["children"] is not None]

    def holders(self, digest: str) -> list[str]:
        return [repository(holder) for holder in self.said["holders"].get(digest, [])]

    def state(self, root: str) -> str:
        """How much of an image is held; of an index, one of its images is enough."""
        if root not in self.blobs:
            return "absent"
        blob = self.blobs[root]
        if blob["children"] is None:
            return "partial"
        below = [self.state(child["digest"]) == "whole" for child in blob["children"]]
        is_index = blob["media_type"] in content.INDEX_TYPES
        return "whole" if all(below) or (is_index and any(below)) else "partial"

    def tree(self, root: str) -> set[str]:
        """A manifest and all that it lists, as far as it is held."""
        if root not in self.blobs:
            return set()
        children = self.blobs[root]["children"] or ()
        return {root}.union(*(self.tree(child["digest"]) for child in children))

    def spared(self) -> set[str]:
        """What no eviction may take: what is pinned, and what is in use."""
        notes = self.said["notes"]
        names = [*notes["pins"], *(name for feed in notes["in use"] for name in feed[1])]
        roots = [name.partition("@")[2] for name in names if "@" in name]
        for name, now in self.tags.items():
            if any(fnmatchcase(name, pattern) for pattern in names):
                roots.append(now["digest"])
        return set().union(*map(self.tree, roots))


@pytest.fixture(params=["cache", "killed"])
def archive(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Unpack a directory to where the proxy is started."""
    name: str = request.param
    with tarfile.open(DATA / f"{name}.tar.gz") as packed:
        packed.extractall(tmp_path / "cache", filter="tar")
    return name


@pytest.fixture
def facts(archive: str) -> Facts:
    return Facts(json.loads((DATA / f"{archive}.json").read_text()))


@pytest.fixture
def opened(facts: Facts, start: Start, clock: Clock) -> Open:
    """Start the proxy a second after the last one ended; no upstream can be reached."""
    clock.now = facts.said["written_at"] + 1

    async def open_it(**changes: Any) -> Proxy:
        lab = {LAB: {"url": NO_REGISTRY, **CREDENTIALS}}
        proxy = await start(**{"hub": {"url": NO_REGISTRY}, "upstreams": lab, **changes})
        await until(lambda: proxy.stats["cache"]["files"] == len(facts.blobs))
        return proxy

    return open_it


async def operate(proxy: Proxy, method: str, path: str, body: str | None = None) -> list[Fact]:
    """Return the lines that the operator gets."""
    connector = UnixConnector(str(proxy.storage / "admin.sock"))
    async with (
        ClientSession("http://admin", connector=connector) as operator,
        operator.request(method, path, data=body) as answer,
    ):
        text = await answer.text()
        assert answer.status == 200, text
    return [json.loads(line) for line in text.splitlines()]


async def victims(proxy: Proxy) -> dict[str, Fact]:
    """Return what an eviction of everything would take, by digest, in its order."""
    events = await operate(proxy, "GET", "/-/evict?bytes=1GiB")
    return {event["digest"]: event for event in events if "digest" in event}


def assert_is(body: bytes, digest: str, size: int) -> None:
    algorithm, _, encoded = digest.partition(":")
    assert hashlib.new(algorithm, body).hexdigest() == encoded
    assert len(body) == size


@pytest.mark.parametrize("offline", [True, False])
async def test_every_whole_image_is_served_by_its_tags(
    opened: Open, facts: Facts, offline: bool
) -> None:
    proxy = await opened(offline=offline)
    whole = {name: now for name, now in facts.tags.items() if facts.state(now["digest"]) == "whole"}
    assert len(whole) >= 9
    for name, now in whole.items():
        repo, _, tag = name.rpartition(":")
        answer = await proxy.get(f"/v2/{repo}/manifests/{tag}")
        assert answer.status == 200, name
        assert answer.headers["Docker-Content-Digest"] == now["digest"]
        assert answer.headers["Content-Type"] == now["media_type"]
        assert_is(answer.body, now["digest"], now["size"])


async def test_content_is_served_under_the_names_that_have_it_and_no_other(
    opened: Open, facts: Facts
) -> None:
    proxy = await opened(offline=True)
    names = {repository(tag) for tag in facts.said["tags"]}
    whole = [one for one, blob in facts.blobs.items() if blob["media_type"]]
    whole = [one for one in whole if facts.state(one) == "whole"]
    for kind, digests in {"blobs": facts.blobs, "manifests": whole}.items():
        for name, digest in product(names, digests):
            answer = await proxy.get(f"/v2/{name}/{kind}/{digest}")
            if name in facts.holders(digest):
                assert answer.status == 200, (name, kind, digest)
                assert_is(answer.body, digest, facts.blobs[digest]["size"])
            else:
                assert answer.status == 404, (name, kind, digest)


async def test_images_are_listed_with_what_is_held_of_them(opened: Open, facts: Facts) -> None:
    proxy = await opened()
    images = {image["name"]: image for image in await operate(proxy, "GET", "/-/images")}
    assert list(images) == list(facts.tags), "tags that upstream has dropped are not among them"
    assert {image["state"] for image in images.values()} == {"whole", "partial", "absent"}
    for name, now in facts.tags.items():
        image = images[name]
        digest = now["digest"]
        for key in ("digest", "media_type", "checked_at"):
            assert image[key] == now[key]
        assert image["state"] == facts.state(digest)
        if digest in facts.understood:
            assert image["last_used"] == facts.blobs[digest]["used_at"]
        spared = facts.tree(digest) and facts.tree(digest) <= facts.spared()
        assert (image["pinned"] or image["in_use"]) == bool(spared)


async def test_what_a_tag_pointed_to_before_is_known(opened: Open, facts: Facts) -> None:
    proxy = await opened()
    longest = 0
    for tag in facts.said["tags"]:
        await operate(proxy, "PUT", "/-/in-use?source=node-1", name_of(tag))
        [in_use] = await operate(proxy, "GET", "/-/in-use")
        before = {f"{repository(tag)}@{entry['digest']}" for entry in tag["history"]}
        assert set(in_use["images"]) == {name_of(tag), *before}
        longest = max(longest, len(before))
    assert longest == 3


async def test_pins_and_what_is_in_use_are_known_and_kept(
    opened: Open, facts: Facts, tmp_path: Path
) -> None:
    (tmp_path / "cache" / "index.json").unlink()  # it names the pins too
    proxy = await opened()
    notes, spared = facts.said["notes"], facts.spared()
    [pins] = await operate(proxy, "GET", "/-/pins")
    assert [pin["pin"] for pin in pins["pins"]] == notes["pins"]
    assert all(pin["images"] for pin in pins["pins"])
    [in_use] = await operate(proxy, "GET", "/-/in-use")
    [[source, names, number, expires_at]] = notes["in use"]
    assert in_use["feeds"] == [{"source": source, "images": number, "expires_at": expires_at}]
    assert in_use["images"] == sorted(names)
    assert 0 < len(spared) < len(facts.blobs)
    going = [one for one in await victims(proxy) if one in facts.understood]
    assert going == [one for one in facts.understood if one not in spared]
    [evicted] = await operate(proxy, "POST", "/-/evict?bytes=1GiB")
    assert evicted["blobs"] == len(facts.blobs) - len(spared)
    assert proxy.held() == spared


@pytest.mark.parametrize("starts", [1, 2])
async def test_content_goes_in_the_order_of_its_last_use(
    opened: Open, facts: Facts, starts: int
) -> None:
    proxy = await opened()
    for _ in range(starts - 1):
        await proxy.close()
        proxy = await opened()
    for pin in facts.said["notes"]["pins"]:
        await operate(proxy, "DELETE", f"/-/pins?pin={pin}")
    await operate(proxy, "PUT", "/-/in-use?source=node-1", "")
    going = await victims(proxy)
    assert going.keys() == facts.blobs.keys()
    assert [one for one in going if one in facts.understood] == facts.understood
    for digest in facts.understood:
        victim, blob = going[digest], facts.blobs[digest]
        assert victim["last_used"] == blob["used_at"]
        assert (victim["size"], victim["media_type"]) == (blob["size"], blob["media_type"])


async def test_referrers_are_known_that_are_held(opened: Open, facts: Facts) -> None:
    """What upstream listed is asked for again."""
    proxy = await opened(offline=True)
    for known in facts.said["referrers"]:
        answer = await proxy.get(f"/v2/{repository(known)}/referrers/{known['subject']}")
        assert json.loads(answer.body)["manifests"] == known["told_by_held"]


@pytest.mark.parametrize("offline", [True, False])
async def test_lists_of_tags_have_what_is_held(opened: Open, facts: Facts, offline: bool) -> None:
    """What upstream listed is asked for again."""
    proxy = await opened(offline=offline)
    for known in facts.said["tag_lists"]:
        answer = await proxy.get(f"/v2/{repository(known)}/tags/list")
        here = [name.rpartition(":") for name in facts.tags]
        held = {tag for repo, _, tag in here if repo == repository(known)}
        assert json.loads(answer.body)["tags"] == sorted(held)
        assert "incomplete" in answer.headers["Warning"]
    assert not (proxy.storage / "index" / "listings").exists()


async def test_only_what_was_public_needs_no_question(
    opened: Open, facts: Facts, upstream: FakeUpstream
) -> None:
    proxy = await opened(hub={"url": upstream.url})
    outcomes = set()
    for number, (digest, blob) in enumerate(facts.blobs.items()):
        name = f"library/claim-{number}"
        body = next(proxy.storage.glob(f"blobs/*/{digest.partition(':')[2]}")).read_bytes()
        layer = {"mediaType": content.OCI_LAYER, "digest": digest, "size": blob["size"]}
        claim = {"schemaVersion": 2, "mediaType": content.OCI_MANIFEST, "layers": [layer]}
        upstream.add_manifest(name, content.encode(claim), content.OCI_MANIFEST, ["latest"])
        algorithm = digest.partition(":")[0]
        assert upstream.add_blob(name, body, algorithm) == digest
        assert (await proxy.get(f"/v2/{name}/manifests/latest")).status == 200
        assert (await proxy.get(f"/v2/{name}/blobs/{digest}")).body == body
        assert (upstream.count(kind="blob", ref=digest) == 0) == blob["is_public"], digest
        outcomes.add(blob["is_public"])
    assert outcomes == {True, False}
    assert upstream.count("GET", kind="blob") == 0


@pytest.mark.parametrize("has_quarantine", [True, False])
async def test_the_blob_that_went_bad_is_still_missed(
    opened: Open, facts: Facts, tmp_path: Path, has_quarantine: bool
) -> None:
    if not has_quarantine:
        shutil.rmtree(tmp_path / "cache" / "quarantine")
    proxy = await opened()
    events = await operate(proxy, "POST", "/-/verify")
    bad = [event for event in events if event["event"] == "bad"]
    lost = [(event["digest"], event["images"]) for event in bad if "set aside" in event["reason"]]
    [[digest, _]] = facts.said["notes"]["verify"]["lost"]
    assert lost == [(digest, ["docker.io/library/broken:latest"])]
    aside = {path.name for path in (proxy.storage / "quarantine").iterdir()}
    assert aside == (set(facts.said["quarantine"]) if has_quarantine else set())


async def test_the_directory_stays_in_order(opened: Open, facts: Facts, tmp_path: Path) -> None:
    before = json.loads((tmp_path / "cache" / "index.json").read_bytes())
    proxy = await opened()
    assert proxy.spooled() == [], "the killed one has left a part of a download"
    assert proxy.held() == facts.blobs.keys()
    await proxy.close()
    after = json.loads((tmp_path / "cache" / "index.json").read_bytes())
    assert after["annotations"][PINS].split() == facts.said["notes"]["pins"]
    names = [
        sorted((entry["annotations"][NAME], entry["digest"]) for entry in document["manifests"])
        for document in (before, after)
    ]
    assert names[1] == names[0]
    assert len(names[0]) > 10
    assert "Traceback" not in proxy.log.getvalue()
