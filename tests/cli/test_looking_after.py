"""The commands on a real cache: beside the server that has it, and when there is none."""

import json
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Done, beside, refused
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

SMALL = content.image(1, layers=(200_000,))
LARGE = content.image(2, layers=(3_000_000,))
APP, BIG = "docker.io/library/app:1.0", "docker.io/library/big:latest"

Command = Callable[..., Awaitable[Done]]


@pytest.fixture(autouse=True)
def images(upstream: FakeUpstream) -> None:
    upstream.add("library/app", SMALL, tags=["1.0"])
    upstream.add("library/big", LARGE, tags=["latest"])


@pytest.fixture
async def pulled(start: Start) -> Proxy:
    """A proxy that holds all of one image, and of the other all but its layer."""
    proxy = await start()
    assert (await proxy.get("/v2/library/big/manifests/latest")).status == 200
    assert (await proxy.get("/v2/library/app/manifests/1.0")).status == 200
    for digest in (SMALL.config, *SMALL.layers):
        assert (await proxy.get(f"/v2/library/app/blobs/{digest}")).status == 200
    await proxy.settled()
    return proxy


@pytest.fixture(params=["beside a server", "without a server"])
async def command(
    request: pytest.FixtureRequest, pulled: Proxy, upstream: FakeUpstream, tmp_path: Path
) -> Command:
    if request.param == "without a server":
        await pulled.close()
    file = tmp_path / "config.yaml"
    settings = {
        "storage": {"path": str(pulled.storage), "min_free": 0},
        "upstreams": {"docker.io": {"url": upstream.url}},
        "admin": {"socket": False},
    }
    file.write_text(json.dumps(settings))

    async def command(*arguments: str, **given: str) -> Done:
        return await beside(*arguments, "--config", str(file), **given)

    return command


def lines(done: Done) -> list[dict[str, Any]]:
    assert done.returncode in (0, 1), done
    return [json.loads(line) for line in done.stdout.splitlines()]


async def test_ls_tells_what_is_held(command: Command) -> None:
    app, big = lines(await command("ls", "--json"))
    assert (app["name"], app["digest"], app["state"]) == (APP, SMALL.digest, "whole")
    assert (big["name"], big["state"], big["missing"]) == (BIG, "partial", 2)
    table = await command("ls", "*/app:*")
    assert [line.split()[:2] for line in table.stdout.splitlines()[1:]] == [[APP, "whole"]]
    assert table.stderr == ""


async def test_a_pin_stays_until_it_is_taken_back(command: Command) -> None:
    done = await command("pin", "app:1.0")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"{APP}: pinned, 1 image, ")
    [entry] = json.loads((await command("pins", "--json")).stdout)["pins"]
    assert (entry["pin"], entry["source"], entry["images"]) == (APP, "added", 1)
    assert [image["pinned"] for image in lines(await command("ls", "--json"))] == [True, False]
    assert (await command("unpin", APP)).returncode == 0
    refused(await command("unpin", APP), APP, "not pinned")
    refused(await command("pins"), "nothing is pinned", status=0)


async def test_what_is_in_use_is_marked_and_not_evicted(command: Command) -> None:
    done = await command("in-use", "-", "--source", "node1", given="app:1.0\n???\n")
    assert done.stdout.startswith("node1: 1 image in use until ")
    refused(done, "standard input: line 2", "???", status=0)
    assert [image["in_use"] for image in lines(await command("ls", "--json"))] == [True, False]
    done = await command("evict", "1GiB", "--dry-run")
    assert [line.split()[:2] for line in done.stdout.splitlines()[1:-1]] == [[BIG, "absent"]]
    assert (await command("evict", "1GiB")).stdout.startswith("evicted: 1 blob, ")
    assert lines(await command("ls", "--json"))[0]["state"] == "whole"


async def test_verify_finds_and_repairs(command: Command, pulled: Proxy) -> None:
    first = lines(await command("verify"))
    assert [event["event"] for event in first if event["event"] != "progress"] == ["start", "done"]
    [layer] = SMALL.layers
    file = pulled.storage / "blobs" / layer.replace(":", "/")
    file.write_bytes(b"x" * file.stat().st_size)
    done = await command("verify", "--restart", "--repair")
    assert (done.returncode, done.stderr) == (0, "")
    [bad] = [event for event in lines(done) if event["event"] == "bad"]
    assert (bad["digest"], bad["repaired"], bad["images"]) == (layer, True, [APP])
    assert file.read_bytes() == SMALL.blobs[layer]
    file.write_bytes(b"x" * file.stat().st_size)
    assert (await command("verify", "--restart")).returncode == 1
    assert [image["state"] for image in lines(await command("ls", "--json"))] == ["partial"] * 2


@pytest.mark.parametrize("part", ["layer", "configuration", "manifest"])
async def test_t61_verify_and_then_verify_repair_heals_a_pinned_image(
    command: Command, pulled: Proxy, part: str
) -> None:
    """The order that docs/operating.md names."""
    assert (await command("pin", "app:1.0")).returncode == 0
    [layer] = SMALL.layers
    digest = {"layer": layer, "configuration": SMALL.config, "manifest": SMALL.digest}[part]
    file = pulled.storage / "blobs" / digest.replace(":", "/")
    right = file.read_bytes()
    file.write_bytes(b"x" * len(right))
    first = await command("verify", "--restart")
    assert (first.returncode, lines(first)[-1]["bad"]) == (1, 1)
    assert (await command("verify")).returncode == 1, "it is still broken"
    done = await command("verify", "--repair")
    assert (done.returncode, done.stderr) == (0, "")
    [bad] = [event for event in lines(done) if event["event"] == "bad"]
    assert (bad["digest"], bad["repaired"], bad["images"]) == (digest, True, [APP])
    assert file.read_bytes() == right
    assert lines(await command("ls", "--json", APP))[0]["state"] == "whole"
    last = lines(await command("verify", "--repair"))
    assert (last[-1]["bad"], last[-1]["repaired"]) == (0, 0)


async def test_t61_content_of_a_removed_upstream_is_reported_and_the_rest_repaired(
    start: Start, upstream: FakeUpstream
) -> None:
    lab = content.image(3, layers=(70_000,))
    upstream.add("team/app", lab, tags=["2"])
    proxy = await start(upstreams={"lab": {"url": upstream.url}})
    for path in ("lab/team/app/manifests/2", f"lab/team/app/blobs/{lab.layers[0]}"):
        assert (await proxy.get(f"/v2/{path}")).status == 200
    await proxy.settled()
    await proxy.close()
    again = await start()
    for path in ("app/manifests/1.0", f"app/blobs/{SMALL.layers[0]}", f"app/blobs/{SMALL.config}"):
        assert (await again.get(f"/v2/{path}")).status == 200
    await again.settled()
    bad = {lab.digest, lab.layers[0], SMALL.layers[0]}
    for digest in bad:
        file = again.storage / "blobs" / digest.replace(":", "/")
        file.write_bytes(b"x" * file.stat().st_size)
    done = await beside("verify", "--repair", "--storage", str(again.storage))
    assert done.returncode == 1, done
    events = {e["digest"]: e for e in lines(done) if e["event"] == "bad"}
    assert events.keys() == bad
    assert events[SMALL.layers[0]]["repaired"] is True
    for digest in (lab.digest, lab.layers[0]):
        assert events[digest]["repaired"] is False
        assert events[digest]["failure"] == "upstream lab is not configured"
    assert (lines(done)[-1]["bad"], lines(done)[-1]["repaired"]) == (3, 1)
    assert "upstream lab is not configured" in again.log.getvalue()
    assert "Traceback" not in again.log.getvalue()


async def test_over_tcp_with_the_token(start: Start, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    proxy = await start(admin={"token_file": str(file), "socket": False})
    assert not (proxy.storage / "admin.sock").exists()
    server = ("--server", f"http://{proxy.app.address}")
    done = await beside("pin", "app", *server, "--token-file", str(file))
    assert done.returncode == 0, done
    refused(await beside("pins", *server), "--token-file")
    done = await beside("ls", "--storage", str(proxy.storage))
    refused(done, "in use by another process, which does not listen on its admin.sock")


async def test_nothing_but_the_cache_is_left_behind(pulled: Proxy, clock: Clock) -> None:
    await pulled.close()
    before = {path: path.stat().st_uid for path in pulled.storage.rglob("*")}
    assert (await beside("ls", "--storage", str(pulled.storage))).returncode == 0
    after = {path: path.stat().st_uid for path in pulled.storage.rglob("*")}
    assert {path.name for path in after.keys() - before.keys()} <= {"cache.db-wal", "cache.db-shm"}
    assert not [path for path in after if stat.S_ISSOCK(path.lstat().st_mode)]


async def test_a_socket_that_a_killed_server_left_is_no_server(pulled: Proxy) -> None:
    await pulled.close()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(pulled.storage / "admin.sock"))
    done = await beside("ls", "--storage", str(pulled.storage))
    assert len(done.stdout.splitlines()) == 3, done


async def test_a_cache_whose_path_fits_no_socket_address(start: Start, tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / "cache"
    proxy = await start(storage={"path": str(deep)})
    del proxy
    assert len(os.fsencode(deep / "admin.sock")) > 107
    done = await beside("pin", "app", "--storage", str(deep))
    assert done.returncode == 0, done


async def test_t68_an_image_is_dropped_and_pulled_again(
    command: Command, pulled: Proxy, upstream: FakeUpstream
) -> None:
    [layer] = SMALL.layers
    done = await command("drop", "app:1.0", "--dry-run")
    assert done.stdout.splitlines()[-1].startswith("would drop: 1 image, "), done
    assert layer in pulled.held()
    done = await command("drop", "app:1.0", "big")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert [line.split()[0] for line in done.stdout.splitlines()] == [
        *("NAME", APP, "dropped:"),
        *("NAME", BIG, "dropped:"),
    ]
    assert not pulled.held()
    assert lines(await command("ls", "--json")) == []
    done = await command("drop", "app:1.0", "ghcr.io/*")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "millpond: app:1.0: no such image in the cache",
        "millpond: ghcr.io/*: no such image in the cache; ** matches across slashes",
    ]
    done = await command("pull", "app:1.0", "big")
    assert (done.returncode, done.stderr) == (0, ""), done
    assert done.stdout.splitlines()[0].startswith(f"{APP}: whole, 195"), done
    assert {image["state"] for image in lines(await command("ls", "--json"))} == {"whole"}
    assert [image["name"] for image in lines(await command("ls", "app", "--json"))] == [APP]


async def test_t68_a_pinned_image_is_dropped_only_after_unpin(
    command: Command, pulled: Proxy
) -> None:
    assert (await command("pin", "docker.io/app:*")).returncode == 0
    [entry] = json.loads((await command("pins", "--json")).stdout)["pins"]
    assert (entry["pin"], entry["images"]) == ("docker.io/library/app:*", 1)
    done = await command("drop", "app", "--json")
    assert done.returncode == 1
    assert [event.get("dropped") for event in lines(done)] == [False, None]
    done = await command("drop", "app")
    refused(done, f"{APP}: stays: pinned as docker.io/library/app:*", status=1)
    [removed] = lines(await command("unpin", "app:*", "--json"))
    assert removed["removed"] == ["docker.io/library/app:*"]
    assert (await command("drop", "app")).returncode == 0


async def test_t68_what_is_pinned_and_absent_is_offered(
    command: Command, upstream: FakeUpstream
) -> None:
    other = content.image(3)
    upstream.add("library/other", other, tags=["1"])
    name = "docker.io/library/other:1"
    done = await command("pin", "other:1")
    assert done.stdout.endswith(f"to fetch it: millpond pull {name}\n")
    done = await command("pin", "other:1", "--pull")
    assert done.returncode == 0, done
    assert f"{name}: whole, " in done.stdout
    [image] = lines(await command("ls", "other", "--json"))
    assert (image["state"], image["pinned"]) == ("whole", True)


async def test_t68_refresh_and_pull_say_what_failed(
    command: Command, upstream: FakeUpstream
) -> None:
    done = await command("refresh", "app:1.0")
    assert done.stdout == f"{APP}: unchanged, {SMALL.digest}\n"
    upstream.add("library/app", LARGE, tags=["1.0"])
    done = await command("refresh", "app:1.0", "none:1", f"app@{SMALL.digest}")
    assert done.stdout == f"{APP}: {SMALL.digest} → {LARGE.digest}\n"
    absent, wrong = done.stderr.splitlines()
    assert absent.startswith("millpond: none:1: ")
    assert "a digest never changes" in wrong
    assert done.returncode == 2
    [told] = lines(await command("refresh", "app:1.0", "--json"))
    assert (told["before"], told["changed"]) == (LARGE.digest, False)
    done = await command("pull", "none:1")
    assert done.returncode == 1
    assert "docker.io/library/none:1: could not be fetched: " in done.stderr
    assert done.stdout == "docker.io/library/none:1: not pulled\n"
    assert json.loads((await command("pull", "none:1", "--json")).stdout.splitlines()[-1])[
        "missing"
    ]


async def test_a_lock_says_if_the_registry_does_not_confirm_it(
    command: Command, upstream: FakeUpstream
) -> None:
    upstream.fail(status=500, kind="manifest")
    done = await command("lock", "app:1.0")
    assert (done.returncode, done.stdout) == (0, f"{APP}@{SMALL.digest}\n")
    assert done.stderr.startswith("millpond: app:1.0: stale: ")


async def test_history_and_lock(command: Command, upstream: FakeUpstream, tmp_path: Path) -> None:
    [known] = lines(await command("history", "--json", "app:1.0"))
    assert (known["image"], known["digest"], known["held_until"]) == (APP, SMALL.digest, None)
    [entry] = known["history"]
    assert (entry["digest"], entry["held"]) == (SMALL.digest, True)
    table = (await command("history", "app:1.0")).stdout.splitlines()
    assert table[0] == APP
    assert table[2].split()[0] == SMALL.digest
    done = await command("history", "app:none")
    assert done.returncode == 1
    assert "has never seen it" in done.stderr

    images, locked = tmp_path / "images.txt", tmp_path / "images.lock"
    images.write_text("# ours\napp:1.0\nbig\n")
    assert (await command("lock", "-f", str(images), "-o", str(locked))).returncode == 0
    assert locked.read_text().splitlines() == [f"{APP}@{SMALL.digest}", f"{BIG}@{LARGE.digest}"]
    upstream.add("library/app", LARGE, tags=["1.0"])
    done = await command("lock", "-f", str(locked))
    assert done.stdout == locked.read_text(), "what is locked stays"
    done = await command("pull", "-f", str(locked), "--all-platforms", "--json")
    assert [one["digest"] for one in lines(done) if one["event"] == "done"] == [
        SMALL.digest,
        LARGE.digest,
    ]
    done = await command("warm", "-f", str(locked), "--no-referrers")
    assert done.returncode == 0, done.stderr
    images.write_text("app:none\n")
    done = await command("lock", "-f", str(images), "-o", str(tmp_path / "none"))
    assert done.returncode == 1
    assert not (tmp_path / "none").exists()
