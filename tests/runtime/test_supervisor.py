"""Background tasks: a failure is reported, and the task works again."""

import ast
import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import proxy
from proxy.content import in_use
from proxy.content.eviction import Evictor
from proxy.content.in_use import Feeds
from proxy.index import sqlite
from proxy.index.uses import Uses
from proxy.runtime import supervisor
from proxy.runtime.part_counters import TaskCounters
from proxy.runtime.readiness import Readiness
from proxy.runtime.supervisor import Supervisor
from proxy.services.oci_index import Layout
from proxy.services.verify import Verifier
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

ROOT = Path(proxy.__file__).parent
OWNERS = {
    "runtime/supervisor.py": "restarts what fails",
    "runtime/executors.py": "waits for the task itself",
    "runtime/singleflight.py": "hands the result to its callers",
    "content/downloads.py": "keeps the failure in the download",
    "upstream/body.py": "raises it where the body is read",
    "fleet/leases.py": "survives what Redis raises, and waits for the rest at the end",
    "fleet/sources.py": "asks several replicas, and takes the first that answers",
    "app/workers/process.py": "waits for them at the end of the process",
    "app/workers/pool.py": "waits for a worker's report, and ends the wait",
    "services/jobs.py": "keeps the failure in the job",
    "web/admin/api/streams.py": "waits for the next event, and ends the wait",
    "cli/clients/checking.py": "waits for it at the end of the command",
}
"""Modules that may start tasks, and what becomes of a failure there."""


class Flaky:
    """A method that raises in some of its calls, counted from 1, and works in all others."""

    def __init__(self, real: Callable[..., Awaitable[Any]], *failing: int) -> None:
        self._real = real
        self._failing = failing
        self.calls = 0

    def __get__(self, owner: Any, _: type) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            if self.calls in self._failing:
                raise LookupError("out of the blue")
            return await self._real(owner, *args, **kwargs)

        return call


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Flaky]:
    """Let a method fail in some calls; restarts come at once."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)

    def flaky(owner: type, name: str, *failing: int) -> Flaky:
        method = Flaky(getattr(owner, name), *failing)
        monkeypatch.setattr(owner, name, method)
        return method

    return flaky


async def failures(proxy: Proxy, task: str) -> tuple[float, float]:
    """Return what ``/metrics`` says of a task: failures, and whether it is up."""
    lines = (await proxy.get("/metrics")).body.decode().splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    label = f'{{task="{task}"}}'
    return (
        float(values[f"millpond_background_failures_total{label}"]),
        float(values[f"millpond_background_up{label}"]),
    )


async def test_t60_eviction_works_again_after_a_failure(
    start: Start, upstream: FakeUpstream, flaky: Callable[..., Flaky], monkeypatch: Any
) -> None:
    monkeypatch.setattr("proxy.content.eviction.WATCH_SECONDS", 0.01)
    enforced = flaky(Evictor, "enforce", 1)
    upstream.add("library/app", content.image(1, layers=(50_000,)))
    proxy = await start(storage={"max_age": "1h"})
    await until(lambda: enforced.calls > 1)
    assert await failures(proxy, "eviction") == (1, 1)
    assert "out of the blue" in proxy.log.getvalue(), "with its traceback"
    assert (
        "Traceback" in proxy.log.getvalue() or '"exc_type": "LookupError"' in proxy.log.getvalue()
    )


async def test_t60_the_index_writes_uses_after_a_failure(
    start: Start, flaky: Callable[..., Flaky], monkeypatch: Any
) -> None:
    monkeypatch.setattr(sqlite, "FLUSH_SECONDS", 0.01)
    flush = flaky(Uses, "flush", 1)
    proxy = await start()
    await until(lambda: flush.calls > 1)
    assert await failures(proxy, "index flush") == (1, 1)


async def test_work_that_fails_while_it_is_cancelled_is_not_restarted() -> None:
    entered = asyncio.Event()

    async def fail_at_the_end() -> None:
        async def child() -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                raise LookupError("the session is closed")

        async with asyncio.TaskGroup() as group:
            group.create_task(child())
            await asyncio.sleep(0)
            entered.set()

    tasks = Supervisor()
    tasks.start("work", fail_at_the_end)
    await entered.wait()
    await asyncio.wait_for(tasks.close(), 10)


async def test_t60_feeds_are_read_after_a_failure(
    start: Start, tmp_path: Path, flaky: Callable[..., Flaky], monkeypatch: Any
) -> None:
    monkeypatch.setattr(in_use, "WATCH_SECONDS", 0.01)
    read = flaky(Feeds, "save", 1)
    proxy = await start(storage={"in_use_file": str(tmp_path / "in-use")})
    await until(lambda: read.calls > 1)
    assert await failures(proxy, "feeds") == (1, 1)


async def test_t60_the_scrub_works_again_after_a_failure(
    start: Start, upstream: FakeUpstream, flaky: Callable[..., Flaky]
) -> None:
    upstream.add("library/app", content.image(1))
    proxy = await start()
    await proxy.get("/v2/app/manifests/latest")
    await proxy.settled()
    await proxy.close()
    flaky(Verifier, "_load", 1)
    again = await start(storage={"scrub_every": "0s", "scrub_rate": 0})
    await until(lambda: again.stats["cache"]["verified_blobs"] > 0)
    assert (await failures(again, "scrub"))[0] == 1


async def test_t60_a_reconciliation_that_fails_is_repeated(
    start: Start, upstream: FakeUpstream, flaky: Callable[..., Flaky]
) -> None:
    recalled = flaky(Layout, "load", 1, 2)
    proxy = await start()
    await until(lambda: recalled.calls == 3)
    assert await failures(proxy, "reconcile") == (2, 1)
    upstream.add("library/app", content.image(1))
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200


async def test_t60_readiness_names_what_keeps_failing(
    start: Start, flaky: Callable[..., Flaky], monkeypatch: Any
) -> None:
    monkeypatch.setattr("proxy.content.eviction.WATCH_SECONDS", 0.01)
    monkeypatch.setattr(supervisor, "UNREADY_SECONDS", 0.0)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "WELL_SECONDS", 0.3)
    enforced = flaky(Evictor, "enforce", *range(1, 40))
    proxy = await start()
    await until(lambda: enforced.calls > 2)
    answer = await proxy.get("/-/readyz")
    assert answer.status == 503
    assert b"eviction" in answer.body
    assert b"LookupError" in answer.body
    async with asyncio.timeout(30):
        while (await proxy.get("/-/readyz")).status != 200:
            await asyncio.sleep(0.02)
    assert enforced.calls > 39


async def test_pauses_grow_and_begin_anew_after_a_good_run(monkeypatch: Any) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "LONGEST_PAUSE", 0.04)
    monkeypatch.setattr(supervisor, "WELL_SECONDS", 0.2)
    pauses: list[float] = []
    monkeypatch.setattr(
        supervisor.log, "error", lambda *_, restart_in, **__: pauses.append(restart_in)
    )

    async def work() -> None:
        if len(pauses) == 4:
            await asyncio.sleep(0.5)
        raise LookupError

    running = Supervisor()
    running.start("work", work)
    await until(lambda: len(pauses) >= 5)
    await running.close()
    assert pauses[:5] == [0.01, 0.02, 0.04, 0.04, 0.01]


async def test_work_that_ends_is_not_started_again() -> None:
    counters = {"work": TaskCounters()}
    runs: list[int] = []

    async def work() -> None:
        runs.append(1)

    running = Supervisor(counters)
    running.start("work", work)
    await until(lambda: bool(runs))
    await asyncio.sleep(0)
    await running.close()
    assert (len(runs), counters["work"].failures, counters["work"].is_running) == (1, 0, True)


async def test_a_cancellation_from_elsewhere_is_a_failure(monkeypatch: Any) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    counters: dict[str, TaskCounters] = {}

    async def work() -> None:
        if counters["work"].failures == 0:
            raise asyncio.CancelledError

    running = Supervisor(counters)
    running.start("work", work)
    await until(lambda: counters["work"].failures == 1 and counters["work"].is_running)
    await running.close()


async def test_what_is_not_essential_leaves_the_proxy_ready(monkeypatch: Any) -> None:
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(supervisor, "UNREADY_SECONDS", 0.0)
    counters: dict[str, TaskCounters] = {}
    readiness = Readiness()

    async def work() -> None:
        raise LookupError

    running = Supervisor(counters, readiness)
    running.start("work", work)
    await until(lambda: counters["work"].failures > 1)
    assert not readiness.reasons
    running.start_essential("more", work)
    await until(lambda: "more" in readiness.reasons)
    await running.close()


def test_t60_tasks_have_an_owner() -> None:
    """A task outside these modules would die in silence: use the supervisor."""
    found = set()
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            match node.func:
                case ast.Attribute(attr="ensure_future" | "run_coroutine_threadsafe"):
                    found.add(path.relative_to(ROOT).as_posix())
                case ast.Attribute(value=ast.Name(id="group"), attr="create_task"):
                    pass  # a TaskGroup raises what its tasks raise
                case ast.Attribute(attr="create_task"):
                    found.add(path.relative_to(ROOT).as_posix())
    assert found == set(OWNERS)
