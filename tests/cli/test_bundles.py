"""Bundles: from one cache to another that has no network."""

import json
import tarfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientSession, UnixConnector

from proxy.services.bundle import signatures
from tests.cli.command import Done, beside, refused
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, started
from tests.services.test_drop import tree

ONE = content.image("one", layers=(300_000,))
TWO = content.image("two", layers=(200_000, 100))
MANY = content.multi_platform("many", ("linux/amd64", "linux/arm64/v8"))
DOCKER = content.image("docker", docker=True)
SBOM = content.artifact(ONE)
SIGNED = content.artifact(None, "application/vnd.dev.cosign.simplesigning.v1+json")
SIGNATURE_TAG = ONE.digest.replace(":", "-") + ".sig"

Command = Callable[..., Awaitable[Done]]
Open = Callable[..., Awaitable[Proxy]]


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/one", ONE, tags=["1"])
    upstream.add("library/one", SBOM, tags=[])
    upstream.add("library/one", SIGNED, tags=[SIGNATURE_TAG])
    upstream.add("acme/two", TWO, tags=["2"])
    upstream.add("acme/many", MANY, tags=["latest"])
    upstream.add("acme/docker", DOCKER, tags=["v1"])


@pytest.fixture
async def opened(upstream: FakeUpstream, clock: Clock, tmp_path: Path) -> AsyncIterator[Open]:
    """Open caches by name, each with a directory of its own."""
    async with AsyncExitStack() as stack:

        async def opened(name: str, **settings: Any) -> Proxy:
            return await stack.enter_async_context(
                started(upstream, tmp_path / name, clock, settings)
            )

        yield opened


@pytest.fixture
def at(tmp_path: Path) -> Command:
    """Run a command on a cache."""

    async def at(proxy: Proxy, *arguments: str, **given: str) -> Done:
        return await beside(*arguments, "--storage", str(proxy.storage), **given)

    return at


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    signatures.write_key(path, "outside")
    return path


class World(NamedTuple):
    """A cache with a network, one without, a command on a cache, and a key to sign with."""

    outside: Proxy
    lab: Proxy
    at: Command
    key: Path


@pytest.fixture
async def world(opened: Open, at: Command, key: Path) -> World:
    return World(await opened("outside"), await opened("lab", offline=True), at, key)


MADE: dict[str, bytes] = {}
"""The bundle that most tests carry, and its keys, made once."""


@pytest.fixture
async def bundle(opened: Open, at: Command, key: Path, tmp_path: Path) -> Path:
    """A signed bundle with one image and what refers to it."""
    path = tmp_path / "one.tar"
    files = {"key": key, "key.pub": key.with_name("key.pub"), "one.tar": path}
    if MADE:
        for name, file in files.items():
            file.write_bytes(MADE[name])
        return path
    outside = await opened("outside first")
    assert (await at(outside, "warm", "one:1", "--platform", "linux/amd64")).returncode == 0
    done = await at(outside, "export", "one:1", "-o", str(path), "--key", str(key))
    assert (done.returncode, done.stderr) == (0, ""), done
    MADE.update({name: file.read_bytes() for name, file in files.items()})
    return path


async def whole(proxy: Proxy, path: str, image: content.Image) -> bool:
    """Pull an image as a client does; return if all of it is served and right."""
    found = await proxy.get(f"/v2/{path}")
    repository = path.partition("/manifests/")[0]
    bodies = {one: (await proxy.get(f"/v2/{repository}/blobs/{one}")).body for one in image.blobs}
    return found.body == image.manifest and bodies == dict(image.blobs)


def trusting(key: Path) -> tuple[str, str]:
    return "--trust", f"{key}.pub"


async def test_an_image_is_carried_with_all_that_refers_to_it(
    bundle: Path, world: World, upstream: FakeUpstream
) -> None:
    _, lab, at, key = world
    upstream.clear()
    done = await at(lab, "import", str(bundle), *trusting(key))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.startswith("imported: 2 images from bundle, signed by outside, ")
    assert lab.held() == tree(ONE, SBOM, SIGNED)
    assert await whole(lab, "library/one/manifests/1", ONE)
    found = await lab.get(f"/v2/library/one/referrers/{ONE.digest}")
    assert [entry["digest"] for entry in json.loads(found.body)["manifests"]] == [SBOM.digest]
    assert (await lab.get(f"/v2/library/one/manifests/{SIGNATURE_TAG}")).status == 200
    assert not upstream.requests


async def test_a_second_import_transfers_nothing(bundle: Path, world: World) -> None:
    _, lab, at, key = world
    assert (await at(lab, "import", str(bundle), *trusting(key))).returncode == 0
    done = await at(lab, "import", str(bundle), *trusting(key), "--json")
    assert json.loads(done.stdout)["imported_bytes"] == 0


async def test_a_dry_run_changes_nothing(bundle: Path, world: World) -> None:
    _, lab, at, key = world
    done = await at(lab, "import", str(bundle), *trusting(key), "--dry-run")
    assert done.returncode == 0
    assert "docker.io/library/one:1" in done.stdout.splitlines()
    assert lab.held() == set()


async def test_a_delta_has_what_is_missing_and_nothing_else(
    bundle: Path, world: World, upstream: FakeUpstream, tmp_path: Path
) -> None:
    outside, lab, at, key = world
    assert (await at(outside, "warm", "one:1")).returncode == 0
    assert (await at(lab, "import", str(bundle), *trusting(key))).returncode == 0
    newer = content.image("one", layers=(300_000, 400_000))
    upstream.add("library/one", newer, tags=["1"])
    assert (await at(outside, "warm", "one:1", "--no-referrers")).returncode == 0
    inventory = tmp_path / "lab.inv"
    inventory.write_text((await at(lab, "inventory")).stdout)
    path = tmp_path / "delta.tar"
    options = ("--missing-from", str(inventory), "--no-referrers", "--key", str(key))
    done = await at(outside, "export", "one:1", "-o", str(path), *options)
    assert done.returncode == 0, done
    fresh = {d: len(b) for d, b in newer.blobs.items() if d not in ONE.blobs}
    with tarfile.open(path) as archive:
        blobs = {m.name.rpartition("/")[2]: m.size for m in archive if m.name.startswith("blobs/")}
    expected = {d.partition(":")[2]: size for d, size in fresh.items()}
    assert blobs == expected | {newer.digest.partition(":")[2]: len(newer.manifest)}
    done = await at(lab, "import", str(path), *trusting(key))
    assert done.returncode == 0, done
    assert await whole(lab, "library/one/manifests/1", newer)


async def test_a_delta_for_another_cache_names_what_is_missing(
    bundle: Path, world: World, opened: Open, tmp_path: Path
) -> None:
    outside, _, at, key = world
    assert (await at(outside, "warm", "one:1")).returncode == 0
    inventory = tmp_path / "inventory"
    layer = ONE.layers[0]
    inventory.write_text(f"# millpond inventory 1\n{layer} 300000\n")
    path = tmp_path / "delta.tar"
    options = ("--missing-from", str(inventory), "--key", str(key))
    assert (await at(outside, "export", "one:1", "-o", str(path), *options)).returncode == 0
    other = await opened("other", offline=True)
    done = await at(other, "import", str(path), *trusting(key))
    assert done.returncode == 1
    assert "1 blobs are neither in the bundle nor in the cache" in done.stderr
    assert layer in done.stderr
    assert other.held() == set()


async def test_tags_history_and_pins_are_carried(
    world: World, upstream: FakeUpstream, clock: Clock, tmp_path: Path
) -> None:
    outside, lab, at, key = world
    assert (await at(outside, "pin", "acme/two:2", "--pull")).returncode == 0
    clock.advance(100)
    newer = content.image("newer two")
    upstream.add("acme/two", newer, tags=["2"])
    assert (await at(outside, "warm", "acme/two:2")).returncode == 0
    history = await outside.history("docker.io", "acme/two", "2")
    assert [entry.digest for entry in history] == [TWO.digest, newer.digest]
    path = tmp_path / "pinned.tar"
    done = await at(outside, "export", "--pinned", "-o", str(path), "--key", str(key))
    assert done.returncode == 0, done
    clock.advance(1000)
    assert (await at(lab, "import", str(path), *trusting(key))).returncode == 0
    assert await lab.history("docker.io", "acme/two", "2") == history
    pins = json.loads((await at(lab, "pins", "--json")).stdout)["pins"]
    assert [pin["pin"] for pin in pins] == ["docker.io/acme/two:2"]
    [image] = map(json.loads, (await at(lab, "ls", "--json")).stdout.splitlines())
    assert (image["state"], image["pinned"]) == ("whole", True)


async def test_imports_are_remembered_with_their_source(
    bundle: Path, world: World, opened: Open
) -> None:
    _, lab, at, key = world
    assert (await at(lab, "import", str(bundle), *trusting(key))).returncode == 0
    [done] = map(json.loads, (await at(lab, "imports", "--json")).stdout.splitlines())
    names = {"docker.io/library/one:1", f"docker.io/library/one:{SIGNATURE_TAG}"}
    assert set(done["images"]) == names
    assert done["source"]
    assert done["creator"].startswith("millpond ")
    [known] = map(json.loads, (await at(lab, "history", "--json", "one:1")).stdout.splitlines())
    [imported] = known["imported"]
    assert (imported["source"], imported["digest"]) == (done["source"], ONE.digest)
    assert f" from {done['source']}" in (await at(lab, "history", "one:1")).stdout
    table = (await at(lab, "imports")).stdout.splitlines()
    assert len(table) == 2
    assert table[1].split()[-1] == "2"
    other = await opened("nothing imported")
    assert (await at(other, "imports", "--json")).stdout == ""


async def test_a_tag_never_goes_back(
    bundle: Path, world: World, opened: Open, upstream: FakeUpstream, clock: Clock
) -> None:
    _, _, at, key = world
    online = await opened("online")
    newer = content.image("newest")
    upstream.add("library/one", newer, tags=["1"])
    clock.advance(100)
    assert (await online.get("/v2/library/one/manifests/1")).status == 200
    done = await at(online, "import", str(bundle), *trusting(key))
    assert "docker.io/library/one:1: unchanged, because this cache has a newer" in done.stdout
    [imported] = map(json.loads, (await at(online, "imports", "--json")).stdout.splitlines())
    assert "docker.io/library/one:1" not in imported["images"]
    assert (await online.get("/v2/library/one/manifests/1")).body == newer.manifest


async def test_a_tag_that_is_held_back_is_exported_as_it_is_served(
    opened: Open, at: Command, key: Path, upstream: FakeUpstream, clock: Clock
) -> None:
    outside = await opened("outside", hub={"min_age": "3d", "first_seen": "allow"})
    lab = await opened("lab", offline=True)
    assert (await at(outside, "warm", "acme/two:2")).returncode == 0
    clock.advance(100)
    upstream.add("acme/two", content.image("poisoned"), tags=["2"])
    assert (await at(outside, "warm", "acme/two:2")).returncode == 0
    [image] = map(json.loads, (await at(outside, "ls", "--json")).stdout.splitlines())
    assert (image["state"], image["served"]) == ("whole", TWO.digest)
    assert "whole, held until 2023-11-17" in (await at(outside, "ls")).stdout
    path = key.with_name("held.tar")
    done = await at(outside, "export", "acme/two:2", "-o", str(path), "--key", str(key))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert (await at(lab, "import", str(path), *trusting(key))).returncode == 0
    assert await whole(lab, "acme/two/manifests/2", TWO)
    assert [one.digest for one in await lab.history("docker.io", "acme/two", "2")] == [TWO.digest]


async def test_parts_make_one_bundle(world: World, upstream: FakeUpstream, tmp_path: Path) -> None:
    outside, lab, at, key = world
    large = content.image("large", layers=(3_000_000,))
    upstream.add("acme/large", large, tags=["latest"])
    assert (await at(outside, "warm", "acme/large", "--no-referrers")).returncode == 0
    path = tmp_path / "parts.tar"
    options = ("--max-part-size", "1MiB", "--key", str(key))
    assert (await at(outside, "export", "acme/large", "-o", str(path), *options)).returncode == 0
    parts = sorted(tmp_path.glob("parts.tar.*"))
    assert [part.name[-3:] for part in parts] == ["001", "002", "003"]
    assert all(part.stat().st_size <= 1024 * 1024 for part in parts)
    gone = parts[1].rename(tmp_path / "elsewhere")
    done = await at(lab, "import", str(path), *trusting(key))
    assert done.returncode == 1
    assert "parts.tar.002: this part is missing" in done.stderr
    gone.rename(parts[1])
    done = await at(lab, "import", str(parts[1]), *trusting(key), "--dry-run")
    assert (done.returncode, done.stderr) == (0, ""), "any part stands for all"
    assert (await at(lab, "import", str(parts[0]), *trusting(key))).returncode == 0
    assert await whole(lab, "acme/large/manifests/latest", large)


async def test_a_directory(world: World, tmp_path: Path) -> None:
    outside, lab, at, key = world
    assert (await at(outside, "warm", "acme/many", "--all-platforms")).returncode == 0
    path = tmp_path / "bundle"
    done = await at(outside, "export", "--all", "-o", f"{path}/", "--key", str(key))
    assert done.returncode == 0, done
    assert (await at(lab, "import", str(path), *trusting(key))).returncode == 0
    assert lab.held() == tree(MANY)
    (path / "extra").write_text("x")
    done = await at(lab, "import", str(path), *trusting(key))
    assert "a file that its contents do not name: extra" in done.stderr


async def test_one_platform_of_an_index(world: World, tmp_path: Path) -> None:
    outside, lab, at, key = world
    assert (await at(outside, "warm", "acme/many", "--all-platforms")).returncode == 0
    path = tmp_path / "arm.tar"
    options = ("--platform", "linux/arm64", "-o", str(path), "--key", str(key))
    assert (await at(outside, "export", "acme/many", *options)).returncode == 0
    assert (await at(lab, "import", str(path), *trusting(key))).returncode == 0
    assert lab.held() == {MANY.digest} | tree(MANY.children[1])


async def test_what_is_not_complete_is_named_and_the_rest_is_written(
    world: World, tmp_path: Path
) -> None:
    outside, _, at, _ = world
    assert (await outside.get("/v2/acme/two/manifests/2")).status == 200
    assert (await at(outside, "warm", "one:1", "--no-referrers")).returncode == 0
    path = tmp_path / "both.tar"
    done = await at(outside, "export", "one:1", "acme/two:2", "none", "-o", str(path))
    assert done.returncode == 1
    assert "docker.io/acme/two:2: incomplete, 3 missing" in done.stderr
    assert "docker.io/library/none:latest: no such image is in the cache" in done.stderr
    assert "the bundle is not signed" in done.stderr
    assert path.exists()


async def test_an_export_of_nothing_writes_nothing(world: World, tmp_path: Path) -> None:
    outside, _, at, key = world
    assert (await at(outside, "warm", "one:1", "--no-referrers")).returncode == 0
    path = tmp_path / "nothing.tar"
    for words in (["--pinned"], ["none"], ["--since", "2100-01-01"]):
        done = await at(outside, "export", *words, "-o", str(path), "--key", str(key))
        assert done.returncode == 1
        assert "no image is selected, so nothing is written" in done.stderr
    assert list(tmp_path.glob("nothing*")) == []


async def test_pins_are_exported_by_tag_and_by_digest_and_missing_ones_are_named(
    world: World, tmp_path: Path
) -> None:
    outside, _, at, key = world
    assert (await outside.get(f"/v2/acme/two/manifests/{TWO.digest}")).status == 200
    for digest in TWO.blobs:
        assert (await outside.get(f"/v2/acme/two/blobs/{digest}")).status == 200
    assert (await at(outside, "warm", "one:1", "--no-referrers")).returncode == 0
    pins = ("one:1", f"acme/two@{TWO.digest}", "none:1", "nothing/*")
    assert (await at(outside, "pin", *pins)).returncode == 0
    path = tmp_path / "pinned.tar"
    options = ("--pinned", "--no-referrers", "-o", str(path), "--key", str(key))
    done = await at(outside, "export", *options)
    assert done.returncode == 1
    assert done.stderr == "millpond: docker.io/library/none:1: no such image is in the cache\n"
    with tarfile.open(path) as archive:
        held = {f"sha256:{m.name[13:]}" for m in archive if m.name.startswith("blobs/")}
    assert held >= tree(ONE, TWO)


async def test_an_export_names_a_platform_that_an_image_does_not_have(
    world: World, tmp_path: Path
) -> None:
    outside, _, at, key = world
    assert (await at(outside, "warm", "acme/many", "--platform", "linux/amd64")).returncode == 0
    wanted = ("--platform", "linux/amd64", "--platform", "linux/s390x")
    options = ("-o", str(tmp_path / "many.tar"), "--key", str(key))
    done = await at(outside, "export", "acme/many", *wanted, *options)
    assert done.returncode == 1
    assert "docker.io/acme/many:latest: there is no image for linux/s390x" in done.stderr


async def test_since_selects_what_has_moved(world: World, clock: Clock) -> None:
    outside, _, at, _ = world
    assert (await at(outside, "warm", "one:1", "--no-referrers")).returncode == 0
    clock.advance(86400)
    assert (await at(outside, "warm", "acme/two:2")).returncode == 0
    # The clock of the tests begins at 2023-11-14T22:13:20Z.
    done = await at(outside, "export", "--since", "2023-11-15", "--dry-run")
    assert done.stdout.splitlines()[0] == "docker.io/acme/two:2"
    assert len(done.stdout.splitlines()) == 2


def flipped(path: Path, name: str, at: int) -> None:
    """Change one bit of a file in an archive."""
    with tarfile.open(path) as archive:
        member = archive.getmember(name)
    body = bytearray(path.read_bytes())
    body[member.offset_data + at] ^= 1
    path.write_bytes(body)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("contents.json", "does not match the contents"),
        (f"blobs/{ONE.layers[0].replace(':', '/')}", "does not match"),
    ],
    ids=["contents", "layer"],
)
async def test_a_damaged_bundle_is_refused_whole(
    bundle: Path, world: World, name: str, words: str
) -> None:
    _, lab, at, key = world
    flipped(bundle, name, 100)
    done = await at(lab, "import", str(bundle), *trusting(key))
    assert done.returncode in (1, 2), done
    assert words in done.stderr
    for reference in ("1", ONE.digest):
        assert (await lab.get(f"/v2/library/one/manifests/{reference}")).status == 404
    for digest in ONE.blobs:
        assert (await lab.get(f"/v2/library/one/blobs/{digest}")).status == 404
    assert (await at(lab, "ls", "--json")).stdout == ""


async def test_without_a_trusted_signature_it_needs_insecure(
    bundle: Path, world: World, tmp_path: Path
) -> None:
    _, lab, at, _ = world
    refused(await at(lab, "import", str(bundle)), "no key is trusted", status=1)
    other = tmp_path / "other"
    done = await beside("key", "new", str(other), "--comment", "other")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{other}.pub: public key SHA256:" in done.stdout
    done = await at(lab, "import", str(bundle), *trusting(other))
    refused(done, "not among the trusted keys", status=1)
    assert lab.held() == set()
    assert (await at(lab, "import", str(bundle), "--insecure")).returncode == 0
    assert await whole(lab, "library/one/manifests/1", ONE)


async def test_docker_manifests_keep_their_digest(world: World, tmp_path: Path) -> None:
    outside, lab, at, key = world
    assert (await at(outside, "warm", "acme/docker:v1", "--no-referrers")).returncode == 0
    path = tmp_path / "docker.tar"
    assert (
        await at(outside, "export", "--all", "-o", str(path), "--key", str(key))
    ).returncode == 0
    assert (await at(lab, "import", str(path), *trusting(key))).returncode == 0
    assert await whole(lab, "acme/docker/manifests/v1", DOCKER)


async def test_an_import_that_was_stopped_goes_on(bundle: Path, world: World) -> None:
    """The state after a kill: some blobs are here, unseen."""
    _, lab, at, key = world
    digest, body = list(ONE.blobs.items())[-1]
    path = lab.storage / "admin.sock"
    async with ClientSession(connector=UnixConnector(str(path))) as session:
        query = {"digest": digest, "size": str(len(body))}
        async with session.put("http://m/-/content", params=query, data=body) as response:
            assert response.status == 200
        async with session.put("http://m/-/content", params=query, data=body + b"x") as response:
            assert response.status == 400
    assert lab.held() == {digest}
    assert (await lab.get(f"/v2/library/one/blobs/{digest}")).status == 404
    done = await at(lab, "import", str(bundle), *trusting(key), "--json")
    assert json.loads(done.stdout)["imported_bytes"] > 0
    assert await whole(lab, "library/one/manifests/1", ONE)


async def test_bad_outputs_are_refused_before_anything_is_written(
    world: World, tmp_path: Path
) -> None:
    outside, _, at, _ = world
    taken = tmp_path / "taken.tar"
    taken.write_text("mine")
    assert (await at(outside, "warm", "one:1", "--no-referrers")).returncode == 0
    done = await at(outside, "export", "one:1", "-o", str(taken))
    assert done.returncode == 2
    assert "exists" in done.stderr
    assert taken.read_text() == "mine"
    done = await at(outside, "export", "one:1", "-o", str(tmp_path / "none" / "x.tar"))
    assert done.returncode == 2
    assert not (tmp_path / "none").exists()
    refused(await at(outside, "export", "one:1"), "--output: name a file")
    refused(await at(outside, "export", "-o", "x"), "name images, or choose --all")


def layout(path: Path, image: content.Image, name: str) -> None:
    """Write an OCI layout as other tools do, whose image is named by its tag alone."""
    blobs = path / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    for digest, body in {image.digest: image.manifest, **image.blobs}.items():
        (blobs / digest.partition(":")[2]).write_bytes(body)
    entry = image.descriptor | {"annotations": {"org.opencontainers.image.ref.name": name}}
    (path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (path / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


async def test_the_layout_of_another_tool(world: World, tmp_path: Path) -> None:
    _, lab, at, _ = world
    layout(tmp_path / "layout", TWO, "2.1")
    done = await at(lab, "import", str(tmp_path / "layout"), "--insecure")
    assert done.returncode == 1
    assert "index.json gives it no full name; add --name IMAGE" in done.stderr
    words = ("import", str(tmp_path / "layout"), "--insecure", "--name", "acme/app")
    assert (await at(lab, *words)).returncode == 0
    assert await whole(lab, "acme/app/manifests/2.1", TWO)


async def test_a_layout_with_wrong_bytes_is_refused(world: World, tmp_path: Path) -> None:
    _, lab, at, _ = world
    layout(tmp_path / "layout", TWO, "docker.io/acme/app:1")
    layer = tmp_path / "layout" / "blobs" / TWO.layers[0].replace(":", "/")
    layer.write_bytes(bytes(len(TWO.blobs[TWO.layers[0]])))
    done = await at(lab, "import", str(tmp_path / "layout"), "--insecure")
    assert done.returncode == 2
    assert f"does not match {TWO.layers[0]}" in done.stderr
    assert (await lab.get("/v2/acme/app/manifests/1")).status == 404


async def test_a_lock_file_selects_what_it_names(
    world: World, upstream: FakeUpstream, tmp_path: Path
) -> None:
    outside, lab, at, key = world
    (tmp_path / "images.txt").write_text("one:1\nacme/two:2\n")
    lock = tmp_path / "images.lock"
    assert (await at(outside, "warm", "-f", str(tmp_path / "images.txt"))).returncode == 0
    done = await at(outside, "lock", "-f", str(tmp_path / "images.txt"), "-o", str(lock))
    assert (done.returncode, done.stderr) == (0, "")
    upstream.add("acme/two", content.image("newer two"), tags=["2"])
    assert (await at(outside, "warm", "acme/two:2")).returncode == 0
    path = tmp_path / "locked.tar"
    done = await at(outside, "export", "-f", str(lock), "-o", str(path), "--key", str(key))
    assert (done.returncode, done.stderr) == (0, "")
    assert (await at(lab, "import", str(path), *trusting(key))).returncode == 0
    assert lab.held() == tree(ONE, SBOM, SIGNED, TWO)
    assert (await lab.get(f"/v2/acme/two/manifests/{TWO.digest}")).body == TWO.manifest
