"""All checks of the doctor together."""

import time
from pathlib import Path

import pytest

from proxy.app.doctor import examined
from proxy.core.errors import ConfigError
from proxy.core.names import Image, parse_digest
from tests.app.doctor.checking import OTHERS, checked, says, settings_of
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.process import free_port

REGISTRY = [
    *("dns", "tcp", "tls", "/v2/", "clock", "anonymous token", "login", "head", "rate limit"),
    "redirect",
]
LOCAL = [
    *("permissions", "space", "disk speed", "descriptors", "port"),
    *("redis", "bucket"),
    *("docker", "containerd", "podman", "buildkit", "k3s"),
]


async def test_everything_is_checked(upstream: FakeUpstream, tmp_path: Path) -> None:
    found = await checked(settings_of(tmp_path, {"url": upstream.url}), upstream=None)
    assert list(found) == REGISTRY + LOCAL
    assert {result.subject for result in found.values()} == {
        "docker.io",
        "machine",
        "shared",
        "clients",
    }
    assert all(result.seconds < 15 for result in found.values())


async def test_one_registry_alone(upstream: FakeUpstream, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, {"url": upstream.url})
    assert list(await checked(settings)) == REGISTRY


async def test_an_image_is_looked_at_in_its_own_registry(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.add("org/app", content.image(1))
    lab = {**OTHERS, "lab": {"url": upstream.url}}
    settings = settings_of(
        tmp_path, {"url": upstream.url}, upstreams=lab | {"docker.io": {"url": upstream.url}}
    )
    says((await checked(settings, "lab/org/app", "lab"))["head"], "ok", "org/app:latest is sha256:")
    says((await checked(settings, "lab/org/app"))["head"], "skipped", "--image")
    lone = Image(None, None, parse_digest(content.digest(b"")))
    with pytest.raises(ConfigError, match="name the repository too"):
        await examined(settings, "lab", lone)


async def test_registries_are_checked_at_the_same_time(tmp_path: Path) -> None:
    async with FakeUpstream() as slow:
        slow.hold(kind="ping")
        hub = {"url": slow.url}
        others = {**OTHERS, "docker.io": hub, "a": hub, "b": hub, "c": hub}
        settings = settings_of(tmp_path, hub, upstreams=others, timeouts={"idle": "2s"})
        began = time.monotonic()
        results = await examined(settings, None, None, tmp_path)
        took = time.monotonic() - began
    late = [result for result in results if result.check == "/v2/"]
    assert [result.status for result in late] == ["failed"] * 4
    assert took < sum(result.seconds for result in late)


async def test_a_registry_that_is_away_does_not_hide_another(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    away = {"url": f"http://127.0.0.1:{free_port()}"}
    upstreams = {**OTHERS, "docker.io": {"url": upstream.url}, "lab": away}
    settings = settings_of(tmp_path, {}, upstreams=upstreams)
    results = {
        (one.subject, one.check): one for one in await examined(settings, None, None, tmp_path)
    }
    says(results["lab", "tcp"], "failed")
    says(results["docker.io", "/v2/"], "ok")
