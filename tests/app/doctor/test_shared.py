"""A real Redis and a real S3 server, each failing and passing."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from proxy.app.doctor import shared
from proxy.settings import Settings
from tests.app.doctor.checking import says, settings_of
from tests.parts import redis as redises
from tests.parts.process import free_port
from tests.parts.redis import Redis
from tests.parts.seaweed import TestBucket


@pytest.fixture
def redis() -> Iterator[Redis]:
    with redises.running() as server:
        yield server


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path


def with_redis(place: Path, url: str) -> Settings:
    return settings_of(place, {"url": "http://127.0.0.1:1"}, fleet={"redis": url})


def with_bucket(place: Path, bucket: dict[str, Any]) -> Settings:
    return settings_of(place, {"url": "http://127.0.0.1:1"}, storage={"bucket": bucket})


async def test_nothing_is_shared(place: Path) -> None:
    alone = settings_of(place, {"url": "http://127.0.0.1:1"})
    says(await shared.redis(alone), "skipped", "fleet.redis is not set")
    says(await shared.bucket(alone), "skipped", "storage.bucket is not set")


async def test_redis_answers_and_keeps_nothing(place: Path, redis: Redis) -> None:
    says(await shared.redis(with_redis(place, redis.url)), "ok", "grants leases")
    with redis.client() as client:
        assert not client.keys()


async def test_redis_refuses_a_password(place: Path, redis: Redis) -> None:
    with redis.client() as client:
        client.config_set("requirepass", "s3cret")
    right = f"redis://:s3cret@127.0.0.1:{redis.port}/0"
    says(await shared.redis(with_redis(place, right)), "ok")
    wrong = await shared.redis(with_redis(place, right.replace("s3cret", "b4d-0ne")))
    says(wrong, "failed", "refuses the user or the password", "check fleet.redis")
    assert "b4d-0ne" not in repr(wrong)


async def test_redis_is_away_or_silent(place: Path, redis: Redis) -> None:
    away = await shared.redis(with_redis(place, f"redis://127.0.0.1:{free_port()}/0"))
    says(away, "failed", "nothing answers there")
    redis.pause()
    silent = await shared.redis(with_redis(place, redis.url))
    redis.resume()
    says(silent, "failed", "does not answer in time")


async def test_redis_has_another_time(
    place: Path, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(shared.time, "time", lambda: now + 100)
    found = await shared.redis(with_redis(place, redis.url))
    says(found, "failed", "the clock of Redis differs by", "timedatectl")


async def test_a_bucket_is_used_and_left_as_it_was(place: Path, bucket: TestBucket) -> None:
    found = await shared.bucket(with_bucket(place, bucket.settings()))
    says(found, "ok", bucket.settings()["url"], "listed, written, read and deleted")
    assert not bucket.objects()


async def test_a_bucket_refuses_a_key(place: Path, bucket: TestBucket) -> None:
    (place / "wrong").write_text("b4d-0ne\n")
    wrong = bucket.settings(secret_access_key_file=str(place / "wrong"))
    found = await shared.bucket(with_bucket(place, wrong))
    says(found, "failed", "objects cannot be listed: it answers 403", "s3:PutObject")
    assert "b4d-0ne" not in repr(found)


async def test_a_bucket_that_is_not_there(place: Path, bucket: TestBucket) -> None:
    lost = bucket.settings(url="s3://nowhere/prefix")
    says(await shared.bucket(with_bucket(place, lost)), "failed", "objects cannot be")
    away = bucket.settings(endpoint=f"http://127.0.0.1:{free_port()}")
    says(await shared.bucket(with_bucket(place, away)), "failed", "objects cannot be listed")


async def test_a_secret_that_cannot_be_read(place: Path, bucket: TestBucket) -> None:
    unread = bucket.settings(secret_access_key_file=str(place / "no"))
    says(await shared.bucket(with_bucket(place, unread)), "failed", "cannot be read", "correct")
