"""`millpond check --online`: it logs in everywhere, and shows no secret."""

import asyncio
import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from proxy.app.online import FAILED, LOGGED_IN, REACHED, ask_bucket
from proxy.settings import Bucket
from tests.cli.command import run
from tests.fakes.upstream import FakeUpstream
from tests.parts.seaweed import TestBucket
from tests.upstream.credentials.programs import written

BUILT_IN = (
    "ghcr.io",
    "quay.io",
    "gcr.io",
    "registry.k8s.io",
    "mcr.microsoft.com",
    "public.ecr.aws",
)


async def check(
    tmp_path: Path,
    upstreams: dict[str, Any],
    *flags: str,
    seconds: int = 10,
    storage: dict[str, Any] | None = None,
) -> CompletedProcess[str]:
    config = tmp_path / "config.yaml"
    first = next(iter(upstreams))
    document = {
        "listen": "127.0.0.1:0",
        "storage": {"path": str(tmp_path / "cache"), **(storage or {})},
        "timeouts": {"answer": f"{seconds}s"},
        "default_upstream": first,
        "upstreams": {**dict.fromkeys((*BUILT_IN, "docker.io")), **upstreams},
    }
    config.write_text(json.dumps(document))
    return await asyncio.to_thread(run, "check", "--online", "--config", str(config), *flags)


async def test_every_registry_is_reported(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.users = {"alice": "wonderland"}
    helper = written(tmp_path / "helper", "print('wonderland'); sys.exit(1)")
    login = {"url": upstream.url, "username": "alice", "password": "wonderland"}
    upstreams = {
        "public": {"url": upstream.url},
        "right": login,
        "wrong": login | {"password": "looking-glass"},
        "helper": {"url": upstream.url, "credentials": {"exec": {"command": [str(helper)]}}},
        "away": {"url": "http://127.0.0.1:9"},
    }
    done = await check(tmp_path, upstreams, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"], document["problems"]) == (1, False, [])
    found = {each["upstream"]: each for each in document["upstreams"]}
    results = {name: (each["credentials"], each["result"]) for name, each in found.items()}
    assert results == {
        "public": ("none", REACHED),
        "right": ("password", LOGGED_IN),
        "wrong": ("password", FAILED),
        "helper": ("exec", FAILED),
        "away": ("none", FAILED),
    }
    assert "answers 401 to a token request" in found["wrong"]["detail"]
    assert "helper ends with status 1" in found["helper"]["detail"]
    assert "cannot be reached" in found["away"]["detail"]
    assert found["right"]["detail"] == ""
    shown = await check(tmp_path, upstreams)
    assert shown.returncode == 1
    lines = [line.split()[:3] for line in shown.stdout.splitlines()[1:]]
    assert lines[0] == ["UPSTREAM", "CREDENTIALS", "RESULT"]
    assert ["wrong", "password", "failed"] in lines
    output = done.stdout + done.stderr + shown.stdout + shown.stderr
    assert "wonderland" not in output
    assert "looking-glass" not in output
    assert not (tmp_path / "cache").exists()


async def test_all_is_well(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.auth.users = {"alice": "wonderland"}
    login = {"url": upstream.url, "username": "alice", "password": "wonderland"}
    done = await check(tmp_path, {"lab": login, "anonymous": {"url": upstream.url}})
    assert done.returncode == 0, done
    assert "logged in" in done.stdout
    assert "reached" in done.stdout
    wrong = await check(tmp_path, {"lab": login | {"password": "looking-glass"}})
    assert wrong.returncode == 1
    assert "rejects the configured credentials" in wrong.stdout


async def test_a_login_that_nobody_asks_for_is_only_reached(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    login = {"url": upstream.url, "username": "alice", "password": "wonderland"}
    done = await check(tmp_path, {"lab": login}, "--json")
    [found] = json.loads(done.stdout)["upstreams"]
    assert (done.returncode, found["result"]) == (0, REACHED)


async def test_wrong_settings_are_not_tried(upstream: FakeUpstream, tmp_path: Path) -> None:
    missing = {"docker_config": str(tmp_path / "none")}
    done = await check(tmp_path, {"lab": {"url": upstream.url, "credentials": missing}}, "--json")
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"], document["upstreams"]) == (2, False, [])
    assert not upstream.requests


async def test_a_registry_that_is_asked_as_its_clients_is_only_reached(
    upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "basic"
    done = await check(tmp_path, {"lab": {"url": upstream.url, "credentials": "caller"}}, "--json")
    [found] = json.loads(done.stdout)["upstreams"]
    assert (done.returncode, found["result"], found["credentials"]) == (0, REACHED, "caller")


async def test_a_registry_that_fails_or_is_slow(upstream: FakeUpstream, tmp_path: Path) -> None:
    upstream.fail(503, kind="ping")
    done = await check(tmp_path, {"lab": {"url": upstream.url}}, "--json")
    [found] = json.loads(done.stdout)["upstreams"]
    assert (found["result"], found["detail"]) == (FAILED, "127.0.0.1 answers 503")


async def test_all_of_it_has_one_time_limit(upstream: FakeUpstream, tmp_path: Path) -> None:
    helper = written(tmp_path / "helper", "time.sleep(600)")
    slow = {"url": upstream.url, "credentials": {"exec": {"command": [str(helper)]}}}
    done = await check(tmp_path, {"lab": slow}, "--json", seconds=1)
    [found] = json.loads(done.stdout)["upstreams"]
    assert (found["result"], found["detail"]) == (FAILED, "no answer within 1 seconds")


async def test_the_bucket_is_asked(
    upstream: FakeUpstream, tmp_path: Path, bucket: TestBucket
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("not the secret")
    buckets = {
        "right": bucket.settings(),
        "wrong": bucket.settings(secret_access_key_file=str(wrong)),
        "missing": bucket.settings(url="s3://nowhere"),
        "away": bucket.settings(endpoint="http://127.0.0.1:9"),
    }
    found = {}
    for name, settings in buckets.items():
        found[name] = await ask_bucket(Bucket.model_validate(settings))
    assert {name: one.result for name, one in found.items()} == {
        "right": LOGGED_IN,
        "wrong": FAILED,
        "missing": FAILED,
        "away": FAILED,
    }
    assert found["wrong"].detail == "it answers 403 Forbidden (SignatureDoesNotMatch)"
    assert "not the secret" not in found["wrong"].detail
    assert found["missing"].detail == "there is no such bucket"
    assert "127.0.0.1:9" in found["away"].detail
    assert not bucket.objects(), "nothing is written"


async def test_the_report_has_the_bucket_last(
    upstream: FakeUpstream, tmp_path: Path, bucket: TestBucket
) -> None:
    storage = {"bucket": bucket.settings()}
    done = await check(tmp_path, {"public": {"url": upstream.url}}, "--json", storage=storage)
    document = json.loads(done.stdout)
    assert (done.returncode, document["ok"]) == (0, True)
    assert document["upstreams"][-1] == {
        "upstream": "storage.bucket",
        "url": f"s3://cache/{bucket.prefix}",
        "credentials": "secret_access_key_file",
        "result": LOGGED_IN,
        "detail": "",
    }
