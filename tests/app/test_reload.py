"""Changed settings in a running proxy: each takes effect, or waits for a restart and is named.

``tests/cli/test_signals.py`` reloads the real program.
"""

from functools import reduce
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import ConfigError
from proxy.settings import Settings
from proxy.settings.access import Rule
from proxy.upstream.transport import Transport
from tests.fakes import content, tls
from tests.fakes.layout import write_layout
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

IMAGE = content.image(1)
MANIFEST = "/v2/app/manifests/latest"

APPLIED: dict[str, Any] = {
    "default_upstream": "ghcr.io",
    "freshness.tag_ttl": 77.0,
    "offline": True,
    "fallback": (Path("/nowhere/millpond"),),
    "pins": ("docker.io/library/app:1",),
    "access.trusted_proxies": ("192.0.2.0/24",),
    "access.rules": (Rule(allow="pull"),),
    "admin.token_file": Path("/nowhere/token"),
    "watch.every": 77.0,
    "timeouts.connect": 7.0,
    "timeouts.answer": 7.0,
    "timeouts.idle": 7.0,
    "patience.retries": 7,
    "parallel.connections": 2,
    "log.level": "warning",
}
RESTART: dict[str, Any] = {
    "listen": "127.0.0.1:1",
    "shutdown_delay": 7.0,
    "shutdown_grace": 7.0,
    "storage.path": Path("/nowhere/cache"),
    "storage.max_age": 7.0,
    "catalog": True,
    "admin.socket": False,
    "timeouts.check": 1.5,
    "timeouts.send": 7.0,
    "prefetch.blobs": 7,
    "memory.manifests": 7_000_000,
    "log.format": "json",
}


def nested(path: str, value: Any) -> dict[str, Any]:
    return reduce(lambda inner, key: {key: inner}, reversed(path.split(".")), value)


def at(settings: Settings, path: str) -> Any:
    return reduce(getattr, path.split("."), settings)


@pytest.fixture
def base(upstream: FakeUpstream) -> dict[str, Any]:
    upstream.add("library/app", IMAGE)
    return {"upstreams": {"docker.io": {"url": upstream.url}}, "log": {"level": "debug"}}


async def reloaded(proxy: Proxy, base: dict[str, Any], **changes: Any) -> Settings:
    return await proxy.app.reload(Settings.model_validate(base | changes))


@pytest.mark.parametrize("path", [*APPLIED, *RESTART])
async def test_a_changed_setting_applies_or_needs_a_restart(
    proxy: Proxy, base: dict[str, Any], path: str
) -> None:
    before = await reloaded(proxy, base)
    wanted = (APPLIED | RESTART)[path]
    assert at(before, path) != wanted
    after = await reloaded(proxy, base, **nested(path, wanted))
    assert at(after, path) == (wanted if path in APPLIED else at(before, path))


async def test_a_fallback_that_is_new_is_asked(
    proxy: Proxy, base: dict[str, Any], upstream: FakeUpstream, tmp_path: Path
) -> None:
    other = content.image(2)
    write_layout(tmp_path / "disk", {"docker.io/library/other:latest": other})
    path = f"/v2/library/other/manifests/{other.digest}"
    assert (await proxy.get(path)).status == 404
    await reloaded(proxy, base, fallback=[str(tmp_path / "disk")])
    assert (await proxy.get(path)).body == other.manifest


async def test_pins_and_the_token_take_effect(
    proxy: Proxy, base: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("secret")
    authorized = {"Authorization": "Bearer secret"}
    assert (await proxy.get("/-/pins", **authorized)).status == 403
    admin = {"token_file": str(tmp_path / "token")}
    await reloaded(proxy, base, admin=admin, pins=["docker.io/library/app:latest"])
    answer = await proxy.get("/-/pins", **authorized)
    assert answer.status == 200
    assert b"docker.io/library/app:latest" in answer.body


async def test_offline_takes_effect_on_answers_that_were_remembered(
    start: Start, base: dict[str, Any]
) -> None:
    proxy = await start(freshness={"tag_ttl": "1h"})
    for _ in range(3):  # the response cache holds what was asked for twice
        assert (await proxy.get(MANIFEST)).status == 200
    await reloaded(proxy, base, offline=True)
    assert (await proxy.get(MANIFEST)).status == 404, "its layers are not held"


async def test_limits_of_clients_take_effect(proxy: Proxy, base: dict[str, Any]) -> None:
    assert (await proxy.get("/v2/")).status == 200
    await reloaded(proxy, base, access={"limits": {"requests_per_second": 0.001}})
    statuses = [(await proxy.get("/v2/")).status for _ in range(5)]
    assert 429 in statuses


async def test_another_default_upstream_gets_requests_that_were_remembered(
    start: Start, base: dict[str, Any]
) -> None:
    proxy = await start(freshness={"tag_ttl": "1h"})
    for _ in range(3):
        assert (await proxy.get("/v2/library/app/manifests/latest")).status == 200
    async with FakeUpstream() as other:
        other.add("library/app", content.image(2))
        upstreams = base["upstreams"] | {"other": {"url": other.url}}
        await reloaded(proxy, base, upstreams=upstreams, default_upstream="other")
        answer = await proxy.get("/v2/library/app/manifests/latest")
    assert answer.body == content.image(2).manifest


async def test_a_reload_logs_which_settings_changed_and_not_to_what(
    proxy: Proxy, base: dict[str, Any], upstream: FakeUpstream
) -> None:
    hub = {"url": upstream.url, "username": "alice", "password": "a-secret-of-alice"}
    await reloaded(proxy, base, upstreams={"docker.io": hub}, shutdown_delay=7.0)
    said = proxy.log.getvalue()
    assert "upstreams.docker.io.password" in said
    assert '"shutdown_delay"' in said
    assert "a-secret-of-alice" not in said
    assert "alice" not in said


async def test_requests_are_logged_by_the_new_level(proxy: Proxy, base: dict[str, Any]) -> None:
    await reloaded(proxy, base, log={"level": "error"})
    proxy.log.truncate(0)
    assert (await proxy.get(MANIFEST)).status == 200
    await proxy.close()
    assert "library/app" not in proxy.log.getvalue()


@pytest.mark.parametrize(
    "wrong",
    [
        {"pins": ["example.com/app"]},
        {"upstreams": {"docker.io": {"tls": {"ca_file": "/nowhere/ca.pem"}}}},
    ],
    ids=["a pin", "an authority"],
)
async def test_a_wrong_setting_changes_nothing(
    proxy: Proxy, base: dict[str, Any], wrong: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError):
        await reloaded(proxy, base, offline=True, **wrong)
    assert (await proxy.get(MANIFEST)).status == 200, "not offline"


async def test_a_refused_certificate_closes_the_upstreams_that_were_built_for_it(
    start: Start, base: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        tls.certificate(tmp_path / name)
    one = {
        "cert_file": str(tmp_path / "one/authority.pem"),
        "key_file": str(tmp_path / "one/key.pem"),
    }
    proxy = await start(tls=one)
    built: list[Transport] = []
    construct = Transport.__init__

    def watched(self: Transport, *parts: Any) -> None:
        construct(self, *parts)
        built.append(self)

    monkeypatch.setattr(Transport, "__init__", watched)
    mismatched = one | {"key_file": str(tmp_path / "two/key.pem")}
    other = {"docker.io": {"url": "http://127.0.0.1:1"}}
    with pytest.raises(ConfigError, match="tls: "):
        await reloaded(proxy, base, tls=mismatched, upstreams=other)
    assert built
    assert all(transport._session.closed for transport in built)
