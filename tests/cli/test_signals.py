"""The real program and signals: SIGHUP reloads the settings, SIGTERM and SIGINT end it."""

import asyncio
import json
import signal
import socket
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession, UnixConnector

from tests.fakes import content, tls
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import Millpond
from tests.parts.process import free_port, workdir

IMAGE = content.image(1, layers=(3_000_000,))
OTHER = content.image(2)
[LAYER] = IMAGE.layers


async def until(condition: Callable[[], Any], what: str, within: float = 30) -> None:
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"waited {within} s in vain for {what}"
        await asyncio.sleep(0.02)


@asynccontextmanager
async def served(url: str, **extra: Any) -> AsyncIterator[tuple[Millpond, ClientSession]]:
    """Run the program; whoever has not ended it by then ends it by SIGKILL."""
    with workdir("signals") as root:
        millpond = Millpond(root, url, free_port(), {"prefetch": {"blobs": 0}, **extra})
        await asyncio.to_thread(millpond.start)
        try:
            async with ClientSession(millpond.url) as client:
                yield millpond, client
            assert "Traceback" not in millpond.log()
        finally:
            millpond.kill()


async def status(client: ClientSession, path: str) -> int:
    async with client.get(path) as answer:
        await answer.read()
        return answer.status


async def reload(millpond: Millpond, **extra: Any) -> list[str]:
    """Change the configuration and send SIGHUP; return the names of what has changed."""
    millpond.configure(extra)
    before = len(millpond.events("settings reloaded"))
    millpond.signal(signal.SIGHUP)
    await until(lambda: len(millpond.events("settings reloaded")) > before, "the reload")
    changed: list[str] = millpond.events("settings reloaded")[-1]["changed"]
    return changed


async def refuse_reload(millpond: Millpond) -> str:
    """Send SIGHUP with a configuration that is wrong; return what the log says."""
    name = "settings not reloaded, nothing has changed"
    before = len(millpond.events(name))
    millpond.signal(signal.SIGHUP)
    await until(lambda: len(millpond.events(name)) > before, "the refusal")
    return str(millpond.events(name)[-1]["error"])


async def ended(millpond: Millpond, within: float = 30) -> int:
    await until(lambda: not millpond.is_alive, "the end", within)
    return millpond.status()


async def test_t67_a_reload_changes_upstreams_and_drops_neither_download_nor_connection(
    upstream: FakeUpstream,
) -> None:
    upstream.add("library/app", IMAGE)
    async with FakeUpstream() as other, served(upstream.url) as (millpond, client):
        other.add("library/new", OTHER)
        other.add("team/app", OTHER)
        assert await status(client, "/v2/app/manifests/latest") == 200
        release = upstream.stall(1_000_000, kind="blob", reference=LAYER)
        async with client.get(f"/v2/app/blobs/{LAYER}") as running:
            begun = await running.content.readexactly(100_000)
            with socket.create_connection(("127.0.0.1", millpond.port)) as idle:
                changed = await reload(
                    millpond,
                    upstreams={
                        "docker.io": {"url": other.url},
                        "lab": {"url": other.url},
                        "gcr.io": None,
                    },
                )
                assert {"upstreams.docker.io.url", "upstreams.lab.url"} <= set(changed)
                assert await status(client, "/v2/new/manifests/latest") == 200
                assert await status(client, "/v2/lab/team/app/manifests/latest") == 200
                assert await status(client, "/v2/gcr.io/app/manifests/latest") == 404
                assert not [r for r in upstream.requests if "new" in r.path]
                release.set()
                assert begun + await running.content.read() == IMAGE.blobs[LAYER]
                idle.sendall(b"GET /v2/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                said = await asyncio.to_thread(lambda: idle.makefile("rb").readline())
                assert b"200" in said
        millpond.signal(signal.SIGTERM)
        assert await ended(millpond) == 0


async def test_t67_a_removed_upstream_is_refused_and_can_come_back(
    upstream: FakeUpstream,
) -> None:
    upstream.add("team/app", IMAGE)
    path = "/v2/lab/team/app/manifests/latest"
    lab = {"lab": {"url": upstream.url}}
    async with served(upstream.url, upstreams=lab) as (millpond, client):
        for _ in range(3):
            assert await status(client, path) == 200
        await reload(millpond, upstreams={"lab": None})
        assert await status(client, path) == 404
        await reload(millpond)
        assert await status(client, path) == 200
        stats = millpond.stats()
        assert stats["upstreams"]["lab"]["requests"] == 4, "its numbers go on"


async def test_t67_answers_that_lay_ready_are_forgotten(upstream: FakeUpstream) -> None:
    """The same bytes lead to another upstream now."""
    path = "/v2/team/app/manifests/latest"
    upstream.add("team/app", IMAGE)
    async with FakeUpstream() as other, served(upstream.url) as (millpond, client):
        other.add("team/app", OTHER)
        for _ in range(4):
            assert await named(client, path) == IMAGE.digest
        lab = {"lab": {"url": other.url}}
        await reload(millpond, default_upstream="lab", upstreams=lab)
        assert await named(client, path) == OTHER.digest


async def test_t67_a_request_under_way_is_not_remembered_for_the_new_settings(
    upstream: FakeUpstream,
) -> None:
    """It was routed by the old settings, and the same bytes lead to another upstream now."""
    path = "/v2/team/app/manifests/latest"
    upstream.add("team/app", IMAGE)
    async with FakeUpstream() as other, served(upstream.url) as (millpond, client):
        other.add("team/app", OTHER)
        assert await status(client, "/v2/") == 200, "so that its connection is known"
        release = upstream.hold(kind="manifest")
        under_way = asyncio.create_task(named(client, path))
        await upstream.until(lambda: upstream.count(kind="manifest") == 1)
        lab = {"lab": {"url": other.url}}
        await reload(millpond, default_upstream="lab", upstreams=lab)
        release.set()
        assert await under_way == IMAGE.digest
        assert await named(client, path) == OTHER.digest


async def named(client: ClientSession, path: str) -> str | None:
    """Return the digest of the manifest that a path leads to."""
    async with client.get(path) as answer:
        await answer.read()
        return answer.headers.get("Docker-Content-Digest")


async def test_t67_an_invalid_file_changes_nothing_and_the_log_says_why(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url) as (millpond, client):
        millpond.config.write_text("upstreams: {docker.io: {urll: x}}\n")
        assert f"{millpond.config}:1" in await refuse_reload(millpond)
        lab = {"lab": {"url": "http://127.0.0.1:9"}}
        for wrong, words in (
            ({"pins": ["not a name"]}, "pins"),
            (
                {"upstreams": {"lab": lab["lab"] | {"tls": {"ca_file": "/none"}}}},
                "upstreams.lab.tls",
            ),
            ({"default_upstream": "none"}, "default_upstream"),
        ):
            millpond.configure({"upstreams": lab, "offline": True, **wrong})
            assert words in await refuse_reload(millpond)
        millpond.config.unlink()
        assert str(millpond.config) in await refuse_reload(millpond)
        assert await status(client, "/v2/app/manifests/latest") == 200, "not offline"
        assert await status(client, "/v2/lab/app/manifests/latest") == 404
        assert not millpond.events("settings reloaded")
        millpond.configure({})
        assert await reload(millpond) == []


async def test_an_old_name_of_a_setting_is_logged_at_each_load(upstream: FakeUpstream) -> None:
    async with served(upstream.url, storage={"finish_from": 0.5}) as (millpond, _):
        warning = "storage.finish_from: renamed to storage.min_complete_ratio"
        assert millpond.log().count(warning) == 1
        assert await reload(millpond, freshness={"reserve": 0.5}) == [
            "freshness.rate_limit_reserve"
        ]
        freshness, storage = (e["warning"] for e in millpond.events("old name of a setting"))
        assert "freshness.reserve: renamed to freshness.rate_limit_reserve" in freshness
        assert warning in storage


async def test_t67_what_needs_a_restart_is_named_and_the_rest_is_in_force(
    upstream: FakeUpstream,
) -> None:
    async with served(upstream.url) as (millpond, client):
        changed = await reload(
            millpond,
            listen="127.0.0.1:1",
            storage={"max_size": "1GiB", "path": "/none"},
            memory={"blobs": "1MiB"},
            timeouts={"check": "1s", "send": "1s"},
            offline=True,
            pins=["app", "team/*"],
        )
        assert changed == ["offline", "pins"]
        [event] = millpond.events("changed settings need a restart")
        cache = {"memory.blobs", "storage.max_size", "storage.path"}
        assert cache | {"listen", "timeouts.check", "timeouts.send"} == set(event["settings"])
        upstream.add("library/app", IMAGE)
        assert await status(client, "/v2/app/manifests/latest") == 404, "offline"
        async with admin(millpond) as operator, operator.get("/-/pins") as answer:
            pins = {pin["pin"]: pin["source"] for pin in (await answer.json())["pins"]}
        assert pins == {"docker.io/library/app:latest": "configured", "team/*": "configured"}


async def test_t67_credentials_and_what_was_absent_without_them(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.add("library/app", IMAGE)
    secret = tmp_path / "secret"
    secret.write_text("wrong")
    upstream.auth.scheme, upstream.auth.anonymous = "basic", False
    upstream.auth.users["user"] = "right"
    hub = {"username": "user", "password_file": str(secret)}
    async with served(upstream.url, upstreams={"docker.io": hub}) as (millpond, client):
        assert await status(client, "/v2/app/manifests/latest") == 502
        secret.write_text("right")
        assert await reload(millpond) == [], "the file is the same, and has other content"
        assert await status(client, "/v2/app/manifests/latest") == 200


async def test_t67_absences_of_the_former_upstream_are_forgotten(upstream: FakeUpstream) -> None:
    fresh = {"negative_ttl": "1h"}
    async with FakeUpstream() as other, served(upstream.url, freshness=fresh) as (millpond, client):
        other.add("library/app", IMAGE)
        for path in ("manifests/latest", f"blobs/{LAYER}"):
            assert await status(client, f"/v2/app/{path}") == 404
        await reload(millpond, upstreams={"docker.io": {"url": other.url}}, freshness=fresh)
        for path in ("manifests/latest", f"blobs/{LAYER}"):
            assert await status(client, f"/v2/app/{path}") == 200


async def test_t67_freshness_and_log_level(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url) as (millpond, client):
        for _ in range(2):
            assert await status(client, "/v2/app/manifests/latest") == 200
        asked = upstream.count(kind="manifest")
        fresh = {"tag_ttl": "0s", "stale_while_revalidate": "0s"}
        changed = await reload(millpond, freshness=fresh, log={"level": "debug"})
        assert "log.level" in changed
        assert await status(client, "/v2/app/manifests/latest") == 200
        assert upstream.count(kind="manifest") == asked + 1
        await until(lambda: len(millpond.events("request")) >= 3, "the request lines")
        millpond.configure({"log": {"level": "error"}})
        millpond.signal(signal.SIGHUP)
        await until(lambda: len(millpond.events("settings reloaded")) == 2, "the reload")
        assert await status(client, "/v2/app/manifests/latest") == 200
        await reload_silently(millpond, client)
        lines = [e for e in millpond.events("request") if e.get("kind") == "manifest"]
        assert len(lines) == 3, "one came while only errors were logged"


async def reload_silently(millpond: Millpond, client: ClientSession) -> None:
    """Back to `info`: the request before must have been passed over by then."""
    millpond.configure({})
    millpond.signal(signal.SIGHUP)
    end = time.monotonic() + 30
    seen = len(millpond.events("request"))
    while len(millpond.events("request")) == seen:
        assert time.monotonic() < end
        assert await status(client, "/-/none") == 404
        assert await status(client, "/v2/") == 200
        await asyncio.sleep(0.05)


async def test_t67_certificates(upstream: FakeUpstream, tmp_path: Path) -> None:
    files = []
    for name in ("one", "two"):
        folder = tmp_path / name
        folder.mkdir()
        tls.certificate(folder)
        files.append(
            {"cert_file": str(folder / "authority.pem"), "key_file": str(folder / "key.pem")}
        )
    one, two = files
    with workdir("signals") as root:
        millpond = Millpond(root, upstream.url, free_port(), {"tls": one})
        await asyncio.to_thread(millpond._daemon.start, lambda: shown(millpond) is not None)
        try:
            assert shown(millpond) == Path(one["cert_file"]).read_text()
            assert set(await reload(millpond, tls=two)) == {"tls.cert_file", "tls.key_file"}
            assert shown(millpond) == Path(two["cert_file"]).read_text()
            millpond.configure({"tls": one | {"key_file": two["key_file"]}, "offline": True})
            assert "tls:" in await refuse_reload(millpond)
            assert shown(millpond) == Path(two["cert_file"]).read_text()
            assert await reload(millpond, tls=two) == [], "not even offline was changed"
        finally:
            millpond.kill()


def shown(millpond: Millpond) -> str | None:
    """Return the certificate that it shows, None if nobody listens."""
    try:
        return ssl.get_server_certificate(("127.0.0.1", millpond.port))
    except OSError:
        return None


async def test_t67_many_reloads_in_a_row(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url) as (millpond, client):
        for number in range(20):
            millpond.configure({"upstreams": {"docker.io": {"max_downloads": number + 1}}})
            millpond.signal(signal.SIGHUP)
            assert await status(client, "/v2/app/manifests/latest") == 200
        millpond.signal(signal.SIGTERM)
        assert await ended(millpond) == 0


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
async def test_t67_a_second_signal_ends_it_at_once(
    upstream: FakeUpstream, second: signal.Signals
) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url, shutdown_grace="10m") as (millpond, client):
        release = upstream.stall(1_000_000, kind="blob", reference=LAYER)
        async with client.get(f"/v2/app/blobs/{LAYER}") as running:
            await running.content.readexactly(100_000)
            millpond.signal(signal.SIGTERM)
            await until(lambda: millpond.events("stopping"), "the end to begin")
            [stopping] = millpond.events("stopping")
            assert (stopping["responses"], stopping["downloads"]) == (1, 1)
            assert stopping["grace_seconds"] == 600
            assert millpond.is_alive
            millpond.signal(second)
            assert await ended(millpond, within=60) == 128 + second
        release.set()
        assert millpond.events("ends at once")[0]["signal"] == second.name


async def test_t67_the_first_signal_waits_for_what_is_being_sent(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url, shutdown_grace="10m") as (millpond, client):
        release = upstream.stall(1_000_000, kind="blob", reference=LAYER)
        async with client.get(f"/v2/app/blobs/{LAYER}") as running:
            begun = await running.content.readexactly(100_000)
            millpond.signal(signal.SIGTERM)
            await until(lambda: millpond.events("stopping"), "the end to begin")
            release.set()
            assert begun + await running.content.read() == IMAGE.blobs[LAYER]
        assert await ended(millpond) == 0


async def test_t67_not_ready_for_a_while_before_the_port_closes(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url, shutdown_delay="3s") as (millpond, client):
        millpond.signal(signal.SIGTERM)
        await until(lambda: millpond.events("stopping"), "the end to begin")
        async with client.get("/-/readyz") as answer:
            assert (answer.status, await answer.json()) == (503, {"status": "stopping"})
        assert await status(client, "/v2/app/manifests/latest") == 200
        async with ClientSession(millpond.url) as another:
            assert await status(another, "/v2/") == 200, "new connections too"
        assert await ended(millpond) == 0
        with pytest.raises(ClientConnectionError):
            await status(client, "/v2/")


@asynccontextmanager
async def admin(millpond: Millpond) -> AsyncIterator[ClientSession]:
    connector = UnixConnector(str(millpond.storage / "admin.sock"))
    async with ClientSession("http://millpond", connector=connector) as client:
        yield client


async def test_t67_a_running_verification_ends_and_goes_on_later(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url, shutdown_grace="10m") as (millpond, client):
        for path in ("manifests/latest", f"blobs/{LAYER}"):
            assert await status(client, f"/v2/app/{path}") == 200
        async with admin(millpond) as operator, operator.post("/-/verify?rate=1000") as verifying:
            first = json.loads(await verifying.content.readline())
            assert first["event"] == "start"
            millpond.signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                said = [json.loads(line) async for line in verifying.content]
            assert "done" not in {event["event"] for event in said}
            assert await ended(millpond) == 0


async def test_t67_a_running_pull_ends_and_goes_on_later(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    async with served(upstream.url, shutdown_grace="10m") as (millpond, _):
        release = upstream.stall(1_000_000, kind="blob", reference=LAYER)
        async with admin(millpond) as operator, operator.post("/-/pull?image=app") as pulling:
            first = json.loads(await pulling.content.readline())
            assert first["event"] == "start"
            millpond.signal(signal.SIGTERM)
            async with asyncio.timeout(60):
                said = [json.loads(line) async for line in pulling.content]
            assert {event["event"] for event in said} <= {"progress"}
            assert await ended(millpond) == 0
        release.set()
