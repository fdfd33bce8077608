"""Long work: started, listed, followed, cancelled."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from proxy.services import jobs
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, until
from tests.web.admin.api.client import ApiClient, Document

APP = "docker.io/library/app:latest"
SLOW = content.image(3, layers=(300_000,))


async def started(api: ApiClient, path: str, **body: Any) -> str:
    told = await api.ask("POST", path, body)
    assert told.status == 202, told
    job: str = told.document["job"]
    return job


async def ended(api: ApiClient, job: str) -> Document:
    async with asyncio.timeout(30):
        while (found := await api.get(f"jobs/{job}"))["state"] == "running":
            await asyncio.sleep(0.01)
    assert found["ended"] >= found["started"]
    return found


async def done(api: ApiClient, path: str, **body: Any) -> Document:
    job = await ended(api, await started(api, path, **body))
    assert job["state"] == "done", job
    return job


async def test_a_pull_is_a_job(api: ApiClient, proxy: Proxy) -> None:
    job = await done(api, "pull", image="app")
    assert (job["kind"], job["what"]) == ("pull", APP)
    assert job["result"]["digest"] in proxy.held()
    assert job["progress"]["done"] == job["progress"]["total"] > 0
    assert job["error"] is None


async def test_a_pull_that_cannot_work_fails(api: ApiClient) -> None:
    job = await ended(api, await started(api, "pull", image="nothing:1"))
    assert job["state"] == "failed"
    assert "404" in job["error"]
    assert (await api.ask("POST", "pull", {"image": "a b"})).status == 400
    assert (await api.ask("POST", "pull", {"image": "sha256:" + "0" * 64})).status == 400


async def test_a_running_job_shows_progress_and_is_cancelled(
    api: ApiClient, proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("library/slow", SLOW)
    release = upstream.stall(100_000, kind="blob")
    job = await started(api, "pull", image="slow")
    async with asyncio.timeout(30):
        while (found := await api.get(f"jobs/{job}"))["progress"]["done"] < 100_000:
            await asyncio.sleep(0.01)
    assert found["state"] == "running"
    assert found["progress"]["total"] > 300_000
    [listed] = (await api.get("jobs"))["jobs"]
    assert listed["id"] == job
    cancelled = await api.change("DELETE", f"jobs/{job}")
    assert cancelled["state"] == "cancelled"
    assert cancelled["ended"]
    assert (await api.change("DELETE", f"jobs/{job}")) == cancelled
    release.set()


async def test_jobs_are_cancelled_at_the_end_of_the_process(
    api: ApiClient, proxy: Proxy, upstream: FakeUpstream
) -> None:
    upstream.add("library/slow", SLOW)
    upstream.stall(100_000, kind="blob")
    await started(api, "pull", image="slow")
    await proxy.close()
    [job] = proxy.app.operator_api.jobs.all()
    assert job.state in (jobs.State.CANCELLED, jobs.State.FAILED)
    assert job.ended


async def test_a_pattern_that_cannot_be_expanded_is_incomplete(
    api: ApiClient, upstream: FakeUpstream
) -> None:
    upstream.fail(status=500, kind="catalog")
    job = await done(api, "warm", images=["docker.io/library/*"])
    assert job["result"]["incomplete"] >= 1
    [event] = [one for one in job["result"]["events"] if "repositories" in one["reason"]]
    assert (event["event"], event["image"]) == ("incomplete", "docker.io/library/*")


async def test_unknown_jobs_are_not_found(api: ApiClient) -> None:
    for method in ("GET", "DELETE"):
        told = await api.ask(method, "jobs/nothing")
        assert (told.status, told.error[0]) == (404, "NAME_UNKNOWN")


async def test_the_number_of_jobs_is_bounded(
    api: ApiClient, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "MAX_RUNNING", 2)
    running = proxy.app.operator_api.jobs

    async def wait(_: jobs.Job) -> None:
        await asyncio.Event().wait()

    for _ in range(2):
        running.start("test", "nothing", wait)
    told = await api.ask("POST", "pull", {"image": "app"})
    assert told.status == 503
    assert "2 jobs are running" in told.error[1]
    for job in running.all():
        await running.cancel(job)

    async def nothing(_: jobs.Job) -> None: ...

    for _ in range(jobs.MAX_ENDED + 5):
        job = running.start("test", "nothing", nothing)
        await asyncio.sleep(0)
        await until(lambda job=job: job.ended is not None)
    assert len((await api.get("jobs"))["jobs"]) == jobs.MAX_ENDED


async def test_an_unexpected_failure_says_nothing_of_the_inside(
    api: ApiClient, proxy: Proxy
) -> None:
    async def fail(_: jobs.Job) -> None:
        raise ValueError("secret")

    job = proxy.app.operator_api.jobs.start("test", "nothing", fail)
    found = await ended(api, job.id)
    assert (found["state"], found["error"]) == ("failed", "internal error")


async def test_a_dry_run_of_a_drop_answers_at_once(api: ApiClient, proxy: Proxy) -> None:
    await done(api, "pull", image="app")
    told = await api.ask("POST", "drop", {"match": "app", "dry_run": True})
    assert told.status == 200
    assert told.document["dropped"] == 1
    assert told.document["images"][0]["name"] == APP
    held = proxy.held()
    job = await done(api, "drop", match="app")
    assert job["result"]["images"] == 1
    assert job["result"]["blobs"] == told.document["blobs"]
    assert len(proxy.held()) < len(held)


async def test_an_eviction_can_be_seen_before(api: ApiClient, proxy: Proxy) -> None:
    await done(api, "pull", image="app")
    told = await api.ask("POST", "evict", {"bytes": "1KiB", "dry_run": True})
    assert told.status == 200
    assert told.document["blobs"] >= 1
    assert told.document["content"][0]["digest"] in proxy.held()
    assert told.document["images"][0]["image"] == APP
    job = await done(api, "evict", bytes=1024)
    assert job["result"] == {"blobs": told.document["blobs"], "bytes": told.document["bytes"]}
    assert (await api.ask("POST", "evict", {"bytes": "much"})).status == 400
    assert (await api.ask("POST", "evict", {"bytes": -1})).status == 400


async def test_verification_is_a_job(api: ApiClient, proxy: Proxy) -> None:
    await done(api, "pull", image="app")
    bad = min(proxy.held())
    path = Path(proxy.storage / "blobs" / bad.replace(":", "/"))
    path.chmod(0o600)
    path.write_bytes(b"x" * path.stat().st_size)
    job = await done(api, "verify")
    assert job["result"]["bad"] == 1
    [event] = job["result"]["events"]
    assert event["digest"] == bad
    assert (await done(api, "verify", repair=True, rate="1GiB"))["result"]["repaired"] >= 0


async def test_images_are_warmed(api: ApiClient, proxy: Proxy) -> None:
    job = await done(api, "warm", images=["app", "tool", "nothing:1"])
    assert job["result"]["whole"] == 2
    assert job["result"]["incomplete"] == 1
    assert job["progress"] == {"done": 3, "total": 3}
    [event] = job["result"]["events"]
    assert event["image"] == "nothing:1"
    assert (await api.ask("POST", "warm", {"images": []})).status == 400
