"""Upstreams that are replaced while they are in use."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from proxy.app import upstreams
from proxy.app.upstreams import Upstreams
from proxy.core.errors import ConfigError, RegistryError
from proxy.core.names import Repo, Target
from proxy.core.sources import Priority
from proxy.repository.origins import NotConfigured, Origins
from proxy.runtime.metrics import Metrics
from proxy.settings import Settings
from proxy.upstream.guard import SYSTEM_NETWORK
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import until

DATA = content.blob(3_000_000)
REPO = Repo("library/app")


def settings(url: str, **hub: Any) -> Settings:
    entries: dict[str, Any] = {"docker.io": {"url": url, **hub}, "lab": {"url": url}}
    return Settings.model_validate({"upstreams": entries})


@pytest.fixture
async def built(clock: Clock) -> AsyncIterator[Upstreams]:
    made = Upstreams(Metrics([]), clock, 64, SYSTEM_NETWORK)
    yield made
    await made.close()


async def test_only_what_has_changed_is_built_again(
    built: Upstreams, upstream: FakeUpstream
) -> None:
    one = built.commit(await built.prepare(settings(upstream.url)))
    fresh = {"tag_ttl": "1h"}
    two = built.commit(await built.prepare(settings(upstream.url, freshness=fresh)))
    assert two["docker.io"].upstream is one["docker.io"].upstream
    assert two["docker.io"].version == one["docker.io"].version
    assert two["docker.io"].rule.tag_ttl == 3600
    changed = settings(upstream.url, max_downloads=3)
    three = built.commit(await built.prepare(changed))
    assert three["docker.io"].upstream is not one["docker.io"].upstream
    assert three["docker.io"].version != one["docker.io"].version
    assert three["lab"].upstream is one["lab"].upstream


async def test_a_renewed_file_builds_its_upstream_again(
    built: Upstreams, upstream: FakeUpstream, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("one")
    configured = settings(upstream.url, username="me", password_file=str(secret))
    one = built.commit(await built.prepare(configured))
    again = built.commit(await built.prepare(configured))
    assert again["docker.io"].upstream is one["docker.io"].upstream
    secret.write_text("another")
    two = built.commit(await built.prepare(configured))
    assert two["docker.io"].upstream is not one["docker.io"].upstream


async def test_t67_a_replaced_upstream_finishes_its_download_and_is_closed_then(
    built: Upstreams, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstreams, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(upstreams, "IDLE_SECONDS", 0.1)
    digest = upstream.add_blob(REPO, DATA)
    release = upstream.stall(1_000_000, kind="blob", reference=digest)
    old = built.commit(await built.prepare(settings(upstream.url)))["docker.io"].upstream
    transport = built._built["docker.io"].transport
    watching = asyncio.create_task(built.close_retired())
    body = await old.open(Target("docker.io", REPO), digest, 0, Priority.DOWNLOAD)  # type: ignore[arg-type]
    async with aclosing(body), aclosing(body.pieces()) as pieces:
        got = [await anext(pieces)]
        built.commit(await built.prepare(settings(upstream.url, max_downloads=3)))
        await asyncio.sleep(0.3)  # longer than a replaced upstream may be idle
        assert not transport._session.closed
        release.set()
        got += [piece async for piece in pieces]
    assert b"".join(piece.data for piece in got) == DATA
    await until(lambda: transport._session.closed and not built._retired)
    watching.cancel()


async def test_a_plan_that_fails_leaves_nothing_open(
    built: Upstreams, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = built.commit(await built.prepare(settings(upstream.url)))
    opened = []
    build = Upstreams._build

    def watched(*args: Any) -> Any:
        opened.append(build(*args))
        return opened[-1]

    monkeypatch.setattr(Upstreams, "_build", watched)
    wrong = settings(upstream.url, max_downloads=3)
    lab = wrong.upstreams["lab"].model_copy(
        update={"tls": wrong.upstreams["lab"].tls.model_copy(update={"ca_file": Path("/none")})}
    )
    wrong = wrong.model_copy(update={"upstreams": wrong.upstreams | {"lab": lab}})
    with pytest.raises(ConfigError, match="lab"):
        await built.prepare(wrong)
    assert opened
    assert all(entry.transport._session.closed for entry in opened)
    assert not built._built["docker.io"].transport._session.closed
    assert built._built["docker.io"].upstream is one["docker.io"].upstream


async def test_t61_an_upstream_that_is_not_configured_is_an_error_of_ours() -> None:
    with pytest.raises(RegistryError, match="upstream lab is not configured"):
        Origins({})["lab"]
    with pytest.raises(NotConfigured):
        Origins({})["lab"]
    assert "lab" not in Origins({})
    assert Origins({}).get("lab") is None
