"""The output of ``millpond explain``."""

import json

from tests.cli.command import beside, refused
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

SECRET = "a-secret-of-alice"


async def explained(proxy: Proxy, *arguments: str) -> dict[str, list[str]]:
    """Return the lines of an explanation by their labels; the first line has the label ""."""
    done = await beside("explain", *arguments, "--storage", str(proxy.storage))
    assert (done.returncode, done.stderr) == (0, ""), done
    assert SECRET not in done.stdout
    first, *rest = done.stdout.splitlines()
    found: dict[str, list[str]] = {"": [first]}
    label = ""
    for line in rest:
        label = line[2:13].strip() or label
        found.setdefault(label, []).append(line[13:])
    return found


async def test_an_image_that_was_never_seen(proxy: Proxy, upstream: FakeUpstream) -> None:
    said = await explained(proxy, "app:1.0")
    assert list(said) == [
        *("", "route", "registry", "held", "freshness", "pull now", "offline", "access"),
        *("policies", "eviction"),
    ]
    assert said[""] == ["docker.io/library/app:1.0"]
    [route] = said["route"]
    assert route.endswith("repository library/app: the name has no registry: default_upstream")
    assert said["registry"] == ["scope repository:library/app:pull, credentials: none, anonymous"]
    assert said["held"] == ["nothing: the image is not in the cache"]
    assert said["freshness"] == ["the registry was never asked for this tag"]
    assert said["pull now"] == [
        "fetched from the registry: the cache does not know this tag (GET of the manifest)"
    ]
    assert said["offline"] == ["refused: its manifest is not in the cache"]
    assert said["access"] == ["anonymous clients: allowed (no rules are configured)"]
    assert said["policies"] == ["none covers it"]
    assert said["eviction"][0] == "nothing to evict"
    assert not upstream.requests


async def test_an_image_of_which_a_part_is_held(
    start: Start, upstream: FakeUpstream, clock: Clock
) -> None:
    index = content.multi_platform()
    upstream.add("library/app", index)
    rules = [{"allow": "pull", "to": ["group:dev"]}]
    policies = [{"name": "small", "max_image_size": "1KiB", "audit": True}]
    proxy = await start(
        hub={"username": "alice", "password": SECRET},
        access={"rules": rules},
        policies=policies,
        pins=["app"],
    )
    async with proxy.client.get("/v2/") as answer:
        assert answer.status == 401
    done = await beside("pull", "app", "--platform", "linux/amd64", "--storage", str(proxy.storage))
    assert done.returncode == 0, done
    said = await explained(proxy, "app", "--as", "ann,dev")
    assert said["held"][0].startswith(f"{index.digest}: whole, ")
    assert said["held"][1].startswith("linux/amd64: whole, ")
    assert said["held"][2] == "linux/arm64: absent"
    assert said["registry"][0].endswith("credentials: password")
    assert said["freshness"][0].startswith("checked ")
    assert "fresh until" in said["freshness"][1]
    assert said["pull now"] == ["served from the cache: the tag is fresh"]
    assert said["offline"] == ["served: all of linux/amd64 is in the cache"]
    assert said["access"] == [
        "anonymous clients: denied (no rule matches); a login may help",
        "user ann: allowed (rule 1: allow pull ** to group:dev)",
    ]
    assert said["policies"][0].startswith("small (max_image_size: 1.0KiB): ")
    assert said["eviction"][:2] == ["pinned by docker.io/library/app:latest", "it is not evicted"]
    assert "eviction begins above" in said["eviction"][-1]


async def test_other_ways_to_ask(proxy: Proxy) -> None:
    said = await explained(proxy, "org/app", "--ns", "ghcr.io", "--address", "10.0.0.1")
    assert said["route"][0].endswith("repository org/app: ns=ghcr.io")
    assert said["access"][0].startswith("anonymous clients from 10.0.0.1: allowed")
    done = await beside("explain", "app", "--json", "--storage", str(proxy.storage))
    told = json.loads(done.stdout)
    assert (told["image"], told["pull"]["answer"]) == ("docker.io/library/app:latest", "fetch")
    lost = await beside("explain", "elsewhere.example/app", "--storage", str(proxy.storage))
    refused(lost, "'elsewhere.example' is not a configured upstream")
