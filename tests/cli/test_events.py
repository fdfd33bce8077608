"""`millpond events` beside a running server: recent events, and those that follow."""

import asyncio
import json
import signal
from pathlib import Path

import pytest

from proxy.runtime.events import EventKind, Events
from tests.cli.command import begun, beside, refused, run
from tests.running import Proxy, Start

NGINX = "docker.io/library/nginx:1.27"


@pytest.fixture
def events(proxy: Proxy) -> Events:
    found: Events = proxy.app.operator_api.events
    return found


async def printed(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return (await process.stdout.readline()).decode().strip()


async def test_recent_events(proxy: Proxy, events: Events) -> None:
    storage = ("--storage", str(proxy.storage))
    none = await beside("events", *storage)
    assert (none.returncode, none.stdout) == (0, "")
    assert "no events" in none.stderr
    events.emit(EventKind.TAG_MOVED, NGINX, **{"from": None, "to": "sha256:1"})
    events.emit(EventKind.DENIED, "docker.io/\x1b[2Jbad", client="10.0.0.1", because="SEC-12")
    done = await beside("events", *storage)
    moved, denied = done.stdout.splitlines()
    assert moved.split()[2:] == ["tag-moved", NGINX, "to=sha256:1"]
    assert "\x1b" not in denied
    only = await beside("events", "--kinds", "denied", "--json", *storage)
    [event] = map(json.loads, only.stdout.splitlines())
    assert (event["kind"], event["data"]["because"]) == ("denied", "SEC-12")


def test_a_kind_that_is_none(tmp_path: Path) -> None:
    refused(
        run("events", "--kinds", "denied,oops", "--storage", str(tmp_path)), "oops", "tag-moved"
    )


async def test_follow_goes_on_after_a_restart(start: Start) -> None:
    proxy = await start()
    proxy.app.operator_api.events.emit(EventKind.EVICTED, "sha256:1")
    async with begun("events", "--follow", "--storage", str(proxy.storage)) as process:
        assert "sha256:1" in await printed(process)
        proxy.app.operator_api.events.emit(EventKind.PULL, NGINX, client="10.0.0.1")
        assert NGINX in await printed(process)
        await proxy.close()
        assert process.stderr is not None
        async with asyncio.timeout(60):
            assert "trying again" in (await process.stderr.readline()).decode()
        again = await start()
        again.app.operator_api.events.emit(EventKind.CORRUPT, "sha256:2")
        assert "sha256:2" in await printed(process)
        process.send_signal(signal.SIGINT)
        assert await asyncio.wait_for(process.wait(), 60) == 130
        said = (await process.stderr.read()).decode()
    assert "Traceback" not in said
