"""The gauge of how long work waits for its turn."""

import asyncio
import re
import time

import pytest

from proxy.runtime import loop_monitor
from proxy.runtime.metrics import Metrics
from tests.running import Proxy, until


async def test_a_blocked_loop_shows(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics([])
    monkeypatch.setattr(loop_monitor, "EVERY", 0.01)
    monkeypatch.setattr(loop_monitor, "MEASUREMENTS", 3)
    watching = asyncio.create_task(loop_monitor.watch(metrics))
    await asyncio.sleep(0.005)
    time.sleep(0.5)  # noqa: ASYNC251 - this is the fault that is looked for
    await until(lambda: metrics.process.loop_lag >= 0.4)
    await until(lambda: metrics.process.loop_lag < 0.4)
    watching.cancel()
    page = (await proxy.get("/metrics")).body.decode()
    assert re.search(r"^millpond_loop_lag_seconds \S+$", page, re.MULTILINE)


async def test_the_longest_delay_shows_until_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    metrics = Metrics([])
    monkeypatch.setattr(loop_monitor, "EVERY", 0.01)
    monkeypatch.setattr(loop_monitor, "MEASUREMENTS", 1_000_000)
    watching = asyncio.create_task(loop_monitor.watch(metrics))
    await until(lambda: metrics.process.loop_lag > 0)  # the first delay is a short one
    time.sleep(0.5)  # noqa: ASYNC251 - this is the fault that is looked for
    await until(lambda: metrics.process.loop_lag >= 0.4)
    watching.cancel()
