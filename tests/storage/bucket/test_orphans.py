"""Uploads that were never completed: whose parts are removed, and whose stay."""

from typing import Any

import pytest

from proxy.core.names import Digest, sha256
from proxy.settings import Bucket
from proxy.storage.bucket import orphans
from proxy.storage.bucket.orphans import sweep
from tests.parts.seaweed import BUCKET, TestBucket

ABANDONED, RUNNING, EARLIER, OTHERS = (sha256(name) for name in (b"1", b"2", b"3", b"4"))


@pytest.fixture
def begin(bucket: TestBucket) -> Any:
    def begin(digest: Digest, prefix: str = bucket.prefix) -> str:
        key = f"{prefix}/blobs/{digest.replace(':', '/')}"
        bucket.server.client.create_multipart_upload(Bucket=BUCKET, Key=key)
        return key

    return begin


def swept(bucket: TestBucket, begun_here: set[Digest], running: set[Digest]) -> int:
    configured = Bucket.model_validate(bucket.settings())
    return sweep(configured, bucket.server.secret, begun_here, running)


def test_abandoned_uploads_go_and_running_ones_stay(
    bucket: TestBucket, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(ABANDONED)
    running = begin(RUNNING)
    monkeypatch.setattr(orphans, "ABANDONED_SECONDS", -60.0)  # of a minute ahead of now
    assert swept(bucket, {RUNNING}, {RUNNING}) == 1
    assert bucket.uploads() == [running]


def test_of_young_uploads_only_those_go_that_began_here(bucket: TestBucket, begin: Any) -> None:
    begin(EARLIER)
    others = begin(OTHERS)
    assert swept(bucket, {EARLIER}, set()) == 1
    assert bucket.uploads() == [others]


def test_what_other_programs_upload_stays(
    bucket: TestBucket, begin: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    neighbour = bucket.server.bucket()
    begin(ABANDONED, neighbour.prefix)
    monkeypatch.setattr(orphans, "ABANDONED_SECONDS", -60.0)
    assert swept(bucket, {ABANDONED}, set()) == 0
    assert len(neighbour.uploads()) == 1
