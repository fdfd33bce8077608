"""Which server a command finds, and its message if there is none."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from proxy.cli import client, connect
from proxy.core.errors import ConfigError, StorageInUse
from proxy.settings import Settings
from tests.fakes.admin import FakeAdmin

Running = Callable[..., Any]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (tmp_path / "oci-layout").touch()
    return Settings.model_validate({"storage": {"path": str(tmp_path)}})


@pytest.fixture
def run_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Running], None]:
    monkeypatch.setattr(connect, "PAUSE", 0.001)
    return lambda running: monkeypatch.setattr(connect, "running", running)


def locked(*_: object, **__: object) -> Any:
    raise StorageInUse("in use")


async def pins(settings: Settings) -> dict[str, Any]:
    async with connect.on_cache(settings) as found:
        return await found.ask("GET", "/-/pins")


async def test_the_server_on_the_socket_is_asked(
    settings: Settings, run_as: Callable[[Running], None]
) -> None:
    run_as(locked)
    fake = FakeAdmin({"GET /-/pins": {"pins": []}})
    async with fake.on_socket(settings.storage.path / "admin.sock"):
        assert await pins(settings) == {"pins": []}


async def test_a_server_that_is_just_starting_is_waited_for(
    settings: Settings, run_as: Callable[[Running], None]
) -> None:
    async with AsyncExitStack() as stack:
        fake = FakeAdmin({"GET /-/pins": {"pins": []}})
        attempts = 0

        @asynccontextmanager
        async def starting(*_: object, **__: object) -> AsyncIterator[None]:
            nonlocal attempts
            attempts += 1
            if attempts == 3:
                socket = fake.on_socket(settings.storage.path / "admin.sock")
                await stack.enter_async_context(socket)
            raise StorageInUse("in use")
            yield

        run_as(starting)
        assert await pins(settings) == {"pins": []}
        assert attempts == 3


async def test_a_directory_in_use_without_a_socket(
    settings: Settings, run_as: Callable[[Running], None]
) -> None:
    run_as(locked)
    with pytest.raises(ConfigError, match="in use by another process, which does not listen"):
        await pins(settings)


async def test_a_server_that_hangs(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PROBE_SECONDS", 0.05)
    held = asyncio.Event()

    async def hang(_: object, writer: asyncio.StreamWriter) -> None:
        await held.wait()
        writer.close()

    path = settings.storage.path / "admin.sock"
    async with asyncio.timeout(60), await asyncio.start_unix_server(hang, path):
        with pytest.raises(ConfigError, match=r"which does not answer on its admin\.sock"):
            await pins(settings)
        held.set()


async def test_another_users_cache_is_left_alone(
    settings: Settings, run_as: Callable[[Running], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_as(locked)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(ConfigError, match=f"belongs to uid {owner}; run this as that user"):
        await pins(settings)


def test_what_cannot_be_reached_is_no_absence(tmp_path: Path) -> None:
    for absent in (errno.ENOENT, errno.ECONNREFUSED):
        connect.check_absent(tmp_path, absent)
    with pytest.raises(ConfigError, match="Permission denied; run this as the user whose"):
        connect.check_absent(tmp_path, errno.EACCES)
    with pytest.raises(ConfigError, match="cannot be reached: Input/output error"):
        connect.check_absent(tmp_path, errno.EIO)


async def test_a_stream_of_events_that_falls_silent_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(client, "SILENCE_SECONDS", 0.05)
    fake = FakeAdmin({"GET /-/events": [{}]}, held=0)
    async with fake.over_tcp(), client.connected(None, URL(fake.url), "there") as found:
        async with asyncio.timeout(20), found.events("/-/events", {}) as events:
            with pytest.raises(client.NoAnswer, match="there: no answer in time"):
                await anext(events)
        fake.release.set()
