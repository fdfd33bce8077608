"""``millpond warm``: from names, patterns and files to whole images in the cache."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Done, beside, on_terminal, refused
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start
from tests.services.test_drop import tree

WEB = content.image("web", layers=(100_000,))
DB = content.image("db", layers=(200_000,))
MANY = content.multi_platform("many", ("linux/amd64", "linux/arm64/v8"))
SBOM = content.artifact(WEB)
ABOUT_SBOM = content.artifact(SBOM, "application/vnd.example.signature.v1", payload=b"signed")
SIGNATURE = content.artifact(None, "application/vnd.dev.cosign.simplesigning.v1+json")

Warm = Callable[..., Awaitable[Done]]


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/web", WEB, tags=["1", "1.0", "2"])
    upstream.add("library/web", SBOM, tags=[])
    upstream.add("library/web", ABOUT_SBOM, tags=[])
    upstream.add("library/web", SIGNATURE, tags=[WEB.digest.replace(":", "-") + ".sig"])
    upstream.add("acme/db", DB, tags=["latest"])
    upstream.add("acme/many", MANY, tags=["latest"])
    return await start()


@pytest.fixture
def warm(proxy: Proxy, upstream: FakeUpstream, tmp_path: Path) -> Warm:
    file = tmp_path / "config.yaml"
    upstreams = {"docker.io": {"url": upstream.url}}
    storage = {"path": str(proxy.storage), "min_free": 0}
    file.write_text(json.dumps({"storage": storage, "upstreams": upstreams}))

    async def warm(*arguments: str, **given: str) -> Done:
        return await beside("warm", *arguments, "--config", str(file), **given)

    return warm


def rows(done: Done) -> list[list[str]]:
    return [line.split() for line in done.stdout.splitlines()]


def events(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_an_image_is_fetched_with_all_that_refers_to_it(warm: Warm, proxy: Proxy) -> None:
    done = await warm("web:1", "--platform", "linux/amd64")
    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.held() == tree(WEB, SBOM, ABOUT_SBOM, SIGNATURE)
    head, row, last = rows(done)
    assert head == ["IMAGE", "PLATFORMS", "STATE", "SIZE", "FETCHED"]
    assert row[:3] == ["docker.io/library/web:1", "linux/amd64", "whole"]
    assert last[:2] == ["1", "image,"]
    again = await warm("web:1", "--platform", "linux/amd64")
    assert again.stdout.splitlines()[-1] == "1 image, 0B fetched"


async def test_without_referrers(warm: Warm, proxy: Proxy) -> None:
    assert (await warm("web:1", "--no-referrers")).returncode == 0
    assert proxy.held() == tree(WEB)


async def test_a_dry_run_fetches_manifests_and_says_what_is_left(warm: Warm, proxy: Proxy) -> None:
    dry = ("acme/db", "--dry-run", "--json", "--no-referrers")
    size = sum(map(len, DB.blobs.values()))
    last = events(await warm(*dry))[-1]
    assert (last["event"], last["image"], last["to_fetch_bytes"]) == ("done", "acme/db", size)
    assert proxy.held() == {DB.digest}
    assert (await warm("acme/db")).returncode == 0
    assert events(await warm(*dry))[-1]["to_fetch_bytes"] == 0


async def test_files_of_other_tools(warm: Warm, proxy: Proxy, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("ARG V=9\nFROM web:${V}\nCOPY --from=acme/db /a /b\n")
    (tmp_path / "compose.yaml").write_text(
        "services: {a: {image: 'acme/many', platform: linux/arm64}, b: {build: .}}"
    )
    done = await warm(
        *("-f", str(tmp_path / "compose.yaml"), "--build-arg", "V=1.0", "--no-referrers"),
        *("--platform", "linux/amd64"),
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.held() == tree(WEB, DB, MANY.children[1]) | {MANY.digest}
    assert {(row[0], row[1]) for row in rows(done)[1:-1]} == {
        ("docker.io/library/web:1.0", "linux/amd64"),
        ("docker.io/acme/db:latest", "linux/amd64"),
        ("docker.io/acme/many:latest", "linux/arm64"),
    }


async def test_standard_input(warm: Warm, proxy: Proxy) -> None:
    pod = "kind: Pod\nspec: {containers: [{name: a, image: 'acme/db'}]}\n"
    assert (await warm("-f", "-", "--no-referrers", given=pod)).returncode == 0
    assert proxy.held() == tree(DB)


async def test_patterns_and_the_catalogue_of_a_registry(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.behaviour.page_size = 1
    done = await warm("docker.io/library/*:1*", "--no-referrers", "--dry-run")
    assert [row[0].rpartition("/")[2] for row in rows(done)[1:-1]] == ["web:1", "web:1.0"]
    done = await warm("https://docker.io/v2/_catalog", "acme/*", "--no-referrers")
    assert (done.returncode, done.stderr) == (0, "")
    assert proxy.held() >= tree(DB)
    assert {row[0] for row in rows(done)[1:-1]} == {
        "docker.io/acme/db:latest",
        "docker.io/acme/many:latest",
    }


async def test_a_registry_without_catalogue_is_named(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.behaviour.catalog = False
    done = await warm("docker.io/acme/*")
    assert done.returncode == 1
    assert "docker.io does not list its repositories" in done.stderr
    assert "docker.io/acme/*: selects no image" in done.stderr
    assert (await proxy.get("/v2/acme/db/manifests/latest")).status == 200
    done = await warm("docker.io/acme/*", "--no-referrers")
    assert done.returncode == 0
    assert proxy.held() == tree(DB), "what is known here is found"


CATALOGUE = "https://docker.io/v2/_catalog"


@pytest.mark.parametrize("status", [401, 403, 404, 500])
async def test_a_catalogue_that_cannot_be_had_is_a_failure(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream, status: int
) -> None:
    assert (await proxy.get("/v2/acme/db/manifests/latest")).status == 200
    upstream.fail(status=status, kind="catalog")
    done = await warm(CATALOGUE, "acme/*", "--no-referrers")
    assert done.returncode == 1
    assert "docker.io/acme/*: docker.io does not list its repositories" in done.stderr
    assert proxy.held() == tree(DB), "what is known here is fetched"
    pattern = await warm("docker.io/acme/*", "--no-referrers")
    assert pattern.returncode == (1 if status == 500 else 0), "most registries have none"


async def test_a_catalogue_of_an_unreachable_registry_is_a_failure(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert (await warm("acme/db", "--no-referrers")).returncode == 0
    await upstream.stop()
    for name in (CATALOGUE, "docker.io/acme/*"):
        done = await warm(name, "--no-referrers")
        assert done.returncode == 1
        assert "docker.io does not list its repositories" in done.stderr


async def test_offline_a_catalogue_cannot_be_had_and_a_pattern_means_what_is_held(
    proxy: Proxy, start: Start
) -> None:
    assert (await proxy.get("/v2/acme/db/manifests/latest")).status == 200
    for digest in DB.blobs:
        assert (await proxy.get(f"/v2/acme/db/blobs/{digest}")).status == 200
    await proxy.close()
    proxy = await start(offline=True)
    for name, status in ((CATALOGUE, 1), ("docker.io/acme/*", 0)):
        done = await beside("warm", name, "--no-referrers", "--storage", str(proxy.storage))
        assert (done.returncode, "docker.io is offline" in done.stderr) == (status, True), done
        assert "docker.io/acme/db:latest" in done.stdout


@pytest.mark.parametrize("is_listed_here", [True, False])
async def test_a_list_of_tags_that_cannot_be_had_is_a_failure(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream, *, is_listed_here: bool
) -> None:
    if is_listed_here:
        assert (await proxy.get("/v2/library/web/tags/list")).status == 200
    upstream.fail(status=500, kind="tags", repository="library/web")
    done = await warm("docker.io/*/*", "--no-referrers")
    assert done.returncode == 1
    assert "millpond: docker.io/*/*: docker.io/library/web: " in done.stderr
    assert proxy.held() >= tree(DB)
    assert (proxy.held() >= tree(WEB)) == is_listed_here


async def test_a_platform_that_an_image_does_not_have_is_a_failure(
    warm: Warm, proxy: Proxy
) -> None:
    wanted = ("--platform", "linux/amd64", "--platform", "linux/s390x")
    done = await warm("acme/many", *wanted, "--no-referrers")
    assert done.returncode == 1
    assert "there is no image for linux/s390x; there is linux/amd64, linux/arm64" in done.stderr
    assert rows(done)[1][2] == "linux/s390x"
    assert rows(done)[1][3] == "incomplete"
    assert proxy.held() == tree(MANY.children[0]) | {MANY.digest}


async def test_an_old_copy_instead_of_the_registrys_image_is_a_failure(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream
) -> None:
    assert (await warm("acme/db", "--no-referrers")).returncode == 0
    upstream.fail(status=500, kind="manifest")
    done = await warm("acme/db", "--no-referrers")
    assert done.returncode == 1
    assert "millpond: acme/db: stale: " in done.stderr
    assert rows(done)[1][2] == "stale"


async def test_files_without_an_image_are_a_failure(warm: Warm) -> None:
    done = await warm("-f", "-", given="")
    assert done.returncode == 1
    assert "no image is named, so nothing is fetched" in done.stderr


async def test_what_could_not_be_had_is_listed_and_the_rest_is_fetched(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.fail(status=500, kind="blob", reference=DB.layers[0])
    (tmp_path / "images.txt").write_text("web:1\nnone:1\nacme/db\ntwo words\n")
    done = await warm("-f", str(tmp_path / "images.txt"), "--no-referrers")
    assert done.returncode == 1
    assert proxy.held() == tree(WEB, DB) - {DB.layers[0]}
    states = {row[0].rpartition("/")[2]: row[2] for row in rows(done)[1:-1]}
    assert states == {"web:1": "whole", "none:1": "failed", "db:latest": "incomplete"}
    problems = done.stderr.splitlines()
    assert len(problems) == 3
    assert "images.txt, line 4: more than an image: two words" in problems[0]
    assert problems[1].startswith("millpond: docker.io/library/none:1: docker.io answers 404")
    assert problems[2].startswith(f"millpond: acme/db: {DB.layers[0]}: ")


async def test_a_failed_list_of_referrers_is_a_problem(
    warm: Warm, proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.fail(status=500, kind="referrers")
    done = await warm("acme/db")
    assert done.returncode == 1
    assert "its referrers could not be listed" in done.stderr
    assert proxy.held() == tree(DB)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "name images, or a file"),
        (("-f", "/none"), "/none: No such file or directory"),
        (("web", "--platform", "amd64"), "amd64 is no platform"),
        (("-f", "-", "--build-arg", "UNSET_HERE"), "UNSET_HERE has no value"),
    ],
)
async def test_wrong_arguments_end_it_in_one_line(
    warm: Warm, arguments: tuple[str, ...], words: str
) -> None:
    refused(await warm(*arguments), words)


async def test_on_a_terminal_it_is_a_bar_for_each_image(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    release = [upstream.stall(1000, reference=layer) for layer in (WEB.layers[0], DB.layers[0])]
    arguments = ("warm", "web:1", "acme/db", "--no-referrers", "--storage", str(proxy.storage))
    async with on_terminal(*arguments, width=120) as terminal:
        await terminal.shows("web:1")
        await terminal.shows("acme/db")
        for event in release:
            event.set()
    assert terminal.lines[-1].startswith("2 images, ")
