"""The commands that look after a cache, against a server that answers as told."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.command import Done, begun, beside, on_terminal, refused, run
from tests.fakes.admin import Asked, FakeAdmin

HOUR, DAY = 3600, 86400
DIGEST = "sha256:" + "0123456789abcdef" * 4
LONG = "registry.example.com/a/repository/with/a/rather/long/name:and-a-long-tag-too"


def image(name: str, state: str = "whole", **changes: Any) -> dict[str, Any]:
    known = {"name": name, "digest": DIGEST, "media_type": "application/x", "state": state}
    held = {"held_bytes": 3 * 1024**2, "missing": 0, "last_used": time.time() - 3 * HOUR - 60}
    return known | held | {"checked_at": 1.0, "pinned": False, "in_use": False} | changes


def listed(pin: str, **changes: Any) -> dict[str, Any]:
    known = {"pin": pin, "source": "added", "images": 1, "bytes": 1024**3, "refused": None}
    return known | changes


def events(*bad: dict[str, Any], resumed: bool = False) -> list[dict[str, Any]]:
    repaired = sum(1 for event in bad if event["repaired"])
    whole = {"blobs": 4, "bytes": 4 * 1024**2}
    return [
        {"event": "start", "resumed": resumed, **whole},
        {"event": "progress", "blobs": 1, "bytes": 1024**2},
        *bad,
        {"event": "done", "bad": len(bad), "repaired": repaired, **whole},
    ]


def bad(**changes: Any) -> dict[str, Any]:
    known = {"event": "bad", "digest": DIGEST, "reason": "its bytes are another's"}
    return known | {"quarantined": None, "repaired": None, "images": []} | changes


IMAGES = [
    image("docker.io/library/nginx:latest", pinned=True, in_use=True),
    image("ghcr.io/org/app:1.0", "partial", missing=2, last_used=None),
]


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[FakeAdmin]:
    async with FakeAdmin().on_socket(tmp_path / "admin.sock") as fake:
        fake.answers["GET /-/stats"] = {"cache": {"bytes": 5 * 1024**2, "limit_bytes": 1024**3}}
        yield fake


async def ask(tmp_path: Path, *arguments: str, given: str = "", **environment: str) -> Done:
    return await beside(*arguments, "--storage", str(tmp_path), given=given, **environment)


async def test_ls_into_a_pipe_is_a_table(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["GET /-/images"] = [*IMAGES, image(LONG, "absent", held_bytes=0)]
    done = await ask(tmp_path, "ls", "*")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["NAME", "STATE", "SIZE", "LAST", "USED", "KEPT"],
        ["docker.io/library/nginx:latest", "whole", "3.0MiB", "3h", "pinned,", "in", "use"],
        ["ghcr.io/org/app:1.0", "partial:", "2", "missing", "3.0MiB", "-"],
        [LONG, "absent", "0B", "3h"],
    ]
    assert admin.asked == [Asked("GET", "/-/images", {"match": "*"}, "")]


async def test_ls_as_json_is_what_the_server_says(admin: FakeAdmin, tmp_path: Path) -> None:
    much = image("much:1", in_use=["x" * 1000] * 300)
    admin.answers["GET /-/images"] = [*IMAGES, much]
    done = await ask(tmp_path, "ls", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == [*IMAGES, much]


@pytest.mark.parametrize("width", [100, 70, 30])
async def test_ls_on_a_terminal(admin: FakeAdmin, tmp_path: Path, width: int) -> None:
    admin.answers["GET /-/images"] = [*IMAGES, image(LONG)]
    async with on_terminal("ls", "--storage", str(tmp_path), width=width) as terminal:
        pass
    total = "3 images: 2 whole, 1 partial; the cache takes 5.0MiB of 1.0GiB"
    assert terminal.lines[-1] == total
    assert LONG in terminal.lines
    if width > 30:
        assert all(len(line) <= width for line in terminal.lines if line not in (LONG, total))
    else:
        assert "  partial: 2 missing, 3.0MiB, -" in terminal.lines


async def test_ls_of_nothing_says_so(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["GET /-/images"] = []
    refused(await ask(tmp_path, "ls"), "the cache has no images", status=0)
    refused(await ask(tmp_path, "ls", "a*"), "no image matches a*", status=0)


async def test_ls_into_a_pipe_that_closes(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["GET /-/images"] = IMAGES * 10_000
    async with begun("ls", "--json", "--storage", str(tmp_path)) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]
        assert process.stderr is not None
        assert await process.stderr.read() == b""
        assert await process.wait() == 128 + signal.SIGPIPE


async def test_names_cannot_steer_a_terminal(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["PUT /-/pins"] = listed("a:1", refused="\x1b[31mred")
    done = await ask(tmp_path, "pin", "a:1")
    assert "\x1b" not in done.stdout
    assert "not honoured: \N{REPLACEMENT CHARACTER}[31mred" in done.stdout


async def test_pin_goes_through_all_names(admin: FakeAdmin, tmp_path: Path) -> None:
    answers: dict[str, Any] = {
        "nginx": listed("docker.io/library/nginx:latest"),
        "unheld": listed("docker.io/library/unheld:latest", images=0, bytes=0),
        "big": (409, "would take 3 bytes of 2"),
        "?": (400, "'?' is not a name"),
    }
    admin.answers["PUT /-/pins"] = lambda query: answers[query["pin"]]
    unheld = "docker.io/library/unheld:latest"
    done = await ask(tmp_path, "pin", "nginx", "big", "unheld")
    assert (done.returncode, done.stderr) == (1, "millpond: big: would take 3 bytes of 2\n")
    assert done.stdout.splitlines() == [
        "docker.io/library/nginx:latest: pinned, 1 image, 1.0GiB",
        f"{unheld}: pinned; not in the cache yet; to fetch it: millpond pull {unheld}",
    ]
    done = await ask(tmp_path, "pin", "?", "big")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "millpond: '?' is not a name")


async def test_unpin(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["DELETE /-/pins"] = {"pin": "docker.io/library/a:1"}
    done = await ask(tmp_path, "unpin", "a:1")
    assert done.stdout == "docker.io/library/a:1: no longer pinned\n"
    admin.answers["DELETE /-/pins"] = (404, "there is no such pin")
    refused(await ask(tmp_path, "unpin", "a:1"), "a:1: there is no such pin")


async def test_pins(admin: FakeAdmin, tmp_path: Path) -> None:
    entries = [listed("a/*", source="configured", refused="too big"), listed("b:1", images=1200)]
    answer = {"pins": entries, "bytes": 1024**3, "limit_bytes": 2 * 1024**3}
    admin.answers["GET /-/pins"] = answer
    done = await ask(tmp_path, "pins")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["PIN", "SOURCE", "IMAGES", "SIZE"],
        ["a/*", "configured", "1", "1.0GiB"],
        ["b:1", "added", "1,200", "1.0GiB"],
    ]
    refused(done, "a/*: not honoured: too big", status=0)
    assert json.loads((await ask(tmp_path, "pins", "--json")).stdout) == answer
    async with on_terminal("pins", "--storage", str(tmp_path)) as terminal:
        pass
    assert "all pins: 1.0GiB of 2.0GiB" in terminal.lines


async def test_in_use_from_a_file_and_from_a_pipe(admin: FakeAdmin, tmp_path: Path) -> None:
    told = {
        "source": "node1",
        "images": 2,
        "expires_at": 1795201440.0,
        "not_understood": ["line 3: ?"],
    }
    admin.answers["PUT /-/in-use"] = told
    file = tmp_path / "images"
    file.write_text("nginx\nalpine\n?\n")
    done = await ask(tmp_path, "in-use", str(file), "--source", "node1", "--ttl", "90m", TZ="UTC")
    assert done.stdout == "node1: 2 images in use until 2026-11-20 19:04\n"
    refused(done, f"{file}: line 3: ?", status=0)
    await ask(tmp_path, "in-use", "-", given="busybox\n")
    query = {"source": os.uname().nodename, "ttl": "3600"}
    assert admin.asked == [
        Asked("PUT", "/-/in-use", {"source": "node1", "ttl": "5400"}, file.read_text()),
        Asked("PUT", "/-/in-use", query, "busybox\n"),
    ]


def evictable(days: int, kind: str | None = None) -> dict[str, Any]:
    used = time.time() - days * DAY - 60
    held = {"size": 1000, "disk_bytes": 4096}
    return {"digest": DIGEST, "media_type": kind, "last_used": used, **held}


async def test_t68_a_dry_eviction_lists_the_images_that_lose_content(
    admin: FakeAdmin, tmp_path: Path
) -> None:
    used = time.time() - 9 * DAY - 60
    lost = {"blobs": 2, "bytes": 8192, "last_used": used}
    named = {"image": "docker.io/library/nginx:1.27", "state": "absent", **lost}
    nameless = {"image": None, "state": None, **lost, "blobs": 1}
    total = {"blobs": 3, "bytes": 12288}
    told = [evictable(9), evictable(2), named, nameless, total]
    admin.answers["GET /-/evict"] = told
    done = await ask(tmp_path, "evict", "12KiB", "--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split() for line in done.stdout.splitlines()] == [
        ["IMAGE", "BECOMES", "LOSES", "BLOBS", "LAST", "USED"],
        ["docker.io/library/nginx:1.27", "absent", "8.0KiB", "2", "9d"],
        ["(content", "of", "no", "tag)", "-", "8.0KiB", "1", "9d"],
        [
            "would",
            "be",
            "evicted:",
            "3",
            "blobs,",
            "12.0KiB;",
            "the",
            "oldest",
            "use",
            "was",
            "9d",
            "ago",
        ],
    ]
    assert admin.asked == [Asked("GET", "/-/evict", {"bytes": "12288"}, "")]
    done = await ask(tmp_path, "evict", "12KiB", "--dry-run", "--json")
    assert [json.loads(line) for line in done.stdout.splitlines()] == told


async def test_an_eviction_may_be_about_the_bucket(tmp_path: Path, admin: FakeAdmin) -> None:
    admin.answers["GET /-/evict"] = [{"blobs": 0, "bytes": 0}]
    admin.answers["POST /-/evict"] = [{"blobs": 2, "bytes": 4096}]
    for flags in (["--dry-run"], []):
        await ask(tmp_path, "evict", "4096", "--bucket", *flags)
    asked = {(one.method, one.query["tier"]) for one in admin.asked}
    assert asked == {("GET", "bucket"), ("POST", "bucket")}
    assert len(admin.asked) == 3


async def test_an_eviction_says_what_went_and_what_is_coldest_now(
    admin: FakeAdmin, tmp_path: Path
) -> None:
    admin.answers["POST /-/evict"] = [{"blobs": 1, "bytes": 4096}]
    admin.answers["GET /-/evict"] = [evictable(2), {"blobs": 1, "bytes": 4096}]
    done = await ask(tmp_path, "evict", "4096")
    assert done.stdout == "evicted: 1 blob, 4.0KiB; the oldest use of the rest was 2d ago\n"
    done = await ask(tmp_path, "evict", "1MiB")
    refused(done, "nothing more can be evicted", status=0)


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([], 0),
        ([bad()], 1),
        ([bad(repaired=True)], 0),
        ([bad(repaired=True), bad(repaired=False)], 1),
    ],
)
async def test_verify_into_a_pipe_is_what_the_server_says(
    admin: FakeAdmin, tmp_path: Path, found: list[dict[str, Any]], status: int
) -> None:
    admin.answers["POST /-/verify"] = events(*found)
    done = await ask(tmp_path, "verify", "--repair", "--rate", "20MiB/s", "--restart")
    assert (done.returncode, done.stderr) == (status, "")
    told = [event for event in events(*found) if event["event"] != "progress"]
    assert [json.loads(line) for line in done.stdout.splitlines()] == told
    query = {"repair": "true", "rate": str(20 * 1024**2), "restart": "true"}
    assert admin.asked == [Asked("POST", "/-/verify", query, "")]


@pytest.mark.parametrize("width", [100, 40])
async def test_verify_on_a_terminal_is_a_bar(admin: FakeAdmin, tmp_path: Path, width: int) -> None:
    found = bad(quarantined="quarantine/x", repaired=True, images=["a:1", "b:2"])
    admin.answers["POST /-/verify"] = events(found, resumed=True)
    admin.held = 3
    async with on_terminal("verify", "--storage", str(tmp_path), width=width) as terminal:
        await terminal.shows("bad: ")
        await terminal.shows(" 25%")
        admin.release.set()
    assert terminal.process.returncode == 0
    seen = terminal.written
    assert "continuing where the last run was interrupted" in seen
    assert f"{DIGEST}: its bytes are another's; moved to quarantine/x; fetched again" in seen
    assert "belongs to a:1, b:2" in seen
    assert "verified 4 blobs, 4.0MiB: 1 bad, 1 of them repaired" in seen
    assert "{" not in seen


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_an_interrupted_verify(
    admin: FakeAdmin, tmp_path: Path, number: int, status: int
) -> None:
    admin.answers["POST /-/verify"] = events()
    admin.held = 2
    async with begun("verify", "--storage", str(tmp_path)) as process:
        assert process.stdout is not None
        await process.stdout.readline()
        process.send_signal(number)
        _, err = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == status
    assert err.decode() == "millpond: interrupted; the next verify continues from here\n"


async def test_verify_interrupted_on_a_terminal(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["POST /-/verify"] = events()
    admin.held = 2
    async with on_terminal("verify", "--storage", str(tmp_path)) as terminal:
        await terminal.shows(" 25%")
        terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.returncode == 130
    erased = "\x1b[2K"
    _, _, after = terminal.written.rpartition(erased)
    assert after.strip() == "millpond: interrupted; the next verify continues from here"


async def test_an_answer_that_breaks_off_is_no_end(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["POST /-/verify"] = events()[:2]
    refused(await ask(tmp_path, "verify"), "stopped before the end")
    admin.breaks = True
    admin.answers["GET /-/images"] = IMAGES
    for command in ("verify", "ls"):
        refused(await ask(tmp_path, command), f"{tmp_path}/admin.sock: the answer broke off")


async def test_an_answer_that_is_not_understood(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["GET /-/pins"] = {"pinned": 3}
    refused(await ask(tmp_path, "pins"), "has no 'pins'", "version")
    admin.answers["GET /-/pins"] = [3]
    refused(await ask(tmp_path, "pins"), "cannot be parsed")


async def test_a_refusal_is_one_line(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["POST /-/verify"] = (409, "a verification\nis running")
    refused(await ask(tmp_path, "verify"), "a verification is running")


async def test_a_directory_whose_path_fits_no_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120)
    deep.mkdir()
    near = os.open(deep, os.O_PATH)
    async with FakeAdmin().on_socket(Path(f"/proc/self/fd/{near}/admin.sock")) as fake:
        fake.answers["GET /-/images"] = IMAGES
        done = await ask(deep, "ls", "--json")
    os.close(near)
    assert len(done.stdout.splitlines()) == 2, done


async def test_a_server_elsewhere_wants_its_token(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret\n")
    fake = FakeAdmin({"GET /-/images": IMAGES}, token="s3cret")
    async with fake.over_tcp():
        done = await beside("ls", "--server", fake.url, "--token-file", str(file))
        assert done.stdout.splitlines()[1:]
        refused(await beside("ls", "--server", fake.url), "the token is wrong", "--token-file")
        file.write_text("other")
        done = await beside("ls", "--server", fake.url, "--token-file", str(file))
        assert done.stderr == "millpond: the token is wrong\n"
    refused(await beside("ls", "--server", fake.url), f"{fake.url}: Connection refused")


async def test_a_token_goes_nowhere_else(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("s3cret")
    other = FakeAdmin({"GET /-/images": IMAGES})
    async with other.over_tcp():
        fake = FakeAdmin({"GET /-/images": f"{other.url}/-/images"}, token="s3cret")
        async with fake.over_tcp():
            done = await beside("ls", "--server", fake.url, "--token-file", str(file))
    refused(done, "the server answers with HTTP status 307")
    assert not other.asked


def test_what_cannot_be_meant(tmp_path: Path) -> None:
    for rate in ("fast", "50MB/h", "10,5MB/s", "-1"):
        refused(run("verify", f"--rate={rate}"), "--rate: not a rate; write 50MB/s")
    refused(run("evict", "10,5GiB"), "SIZE: '10,5GiB' is not a size")
    refused(run("evict", "0"), "SIZE: must be more than 0")
    for ttl in ("forever", "0s"):
        refused(run("in-use", "-", "--ttl", ttl), "--ttl: must end")
    refused(run("in-use", "-", "--ttl", "soon"), "--ttl: not a duration")
    refused(run("in-use", str(tmp_path / "none")), "none: cannot be read: No such file")
    refused(run("ls", "--server", "cache:5000"), "--server: not an address")
    refused(run("ls", "--server", "http://a:b@c"), "--server: takes no credentials")
    refused(run("ls", "--server", "http://c", "--storage", "/"), "--server: another place")
    refused(run("ls", "--token-file", "x"), "--token-file: goes with --server only")
    server = ("ls", "--server", "http://127.0.0.1:9", "--token-file")
    refused(run(*server, "/none"), "--token-file: /none cannot be read: No such file")
    (tmp_path / "empty").write_text("\n")
    refused(run(*server, str(tmp_path / "empty")), "empty holds no token")


def test_where_there_is_no_cache_none_is_made(tmp_path: Path) -> None:
    refused(run("ls", "--storage", str(tmp_path)), f"{tmp_path}: there is no cache here")
    assert not list(tmp_path.iterdir())
    refused(run("ls", "--storage", str(tmp_path / "none")), "there is no cache here")


def pulled(**changes: Any) -> list[dict[str, Any]]:
    done = {"event": "done", "image": "docker.io/library/a:1", "digest": DIGEST}
    sums = {"bytes": 2048, "total": 2048, "fetched_bytes": 1024, "missing": 0, "warning": None}
    return [
        {"event": "start", "image": "docker.io/library/a:1"},
        {"event": "progress", "bytes": 512, "total": 2048},
        *({"event": "missing", "digest": DIGEST, "reason": "no\x1broom"} for _ in range(changes.get("missing", 0))),
        done | sums | changes,
    ]  # fmt: skip


async def test_t68_pull_on_a_terminal_is_a_bar(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["POST /-/pull"] = pulled()
    admin.held = 2
    async with on_terminal("pull", "a:1", "--storage", str(tmp_path)) as terminal:
        await terminal.shows(" 25%")
        admin.release.set()
    assert terminal.process.returncode == 0
    assert "docker.io/library/a:1: whole, 2.0KiB, 1.0KiB fetched" in terminal.written
    [asked] = admin.asked
    assert asked.query["image"] == "a:1"
    assert asked.query["platforms"].startswith("linux/")


async def test_pull_into_a_pipe(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["POST /-/pull"] = pulled(missing=1, warning="stale")
    arguments = ("--platform", "linux/arm64", "--platform", "linux/amd64")
    done = await ask(tmp_path, "pull", "a:1", *arguments)
    assert (done.returncode, done.stdout) == (
        1,
        "docker.io/library/a:1: incomplete, 1 missing; stale\n",
    )
    refused(done, f"{DIGEST}: could not be fetched: no\N{REPLACEMENT CHARACTER}room", status=1)
    await ask(tmp_path, "pull", "a:1", "--all-platforms")
    assert [asked.query["platforms"] for asked in admin.asked] == ["linux/arm64,linux/amd64", ""]
    admin.answers["POST /-/pull"] = pulled()[:2]
    refused(await ask(tmp_path, "pull", "a:1"), "stopped before the end")
    refused(run("pull", "a", "--platform", "arm64"), "--platform: arm64 is no platform")
    refused(run("pull", "a", "--platform", "a/b", "--all-platforms"), "--platform: goes without")
