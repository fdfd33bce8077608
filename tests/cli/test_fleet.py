"""``millpond fleet``, against a server that answers as told."""

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cli.command import beside, refused
from tests.fakes.admin import FakeAdmin

DIGEST = "sha256:" + "0123456789abcdef" * 4


@pytest.fixture
async def admin(tmp_path: Path) -> AsyncIterator[FakeAdmin]:
    async with FakeAdmin().on_socket(tmp_path / "admin.sock") as fake:
        yield fake


async def test_fleet(admin: FakeAdmin, tmp_path: Path) -> None:
    download = {"digest": DIGEST, "upstream": "docker.io", "repository": "library/app"}
    first = {
        "address": "http://10.0.0.1:5000",
        "version": "1.0",
        "uptime_seconds": 7300,
        "health": "ok",
        "disk_bytes": 1024**3,
        "disk_limit_bytes": 2 * 1024**3,
        "downloads": 1,
        "downloading": [download | {"bytes": 1024**2, "size": None}],
    }
    answer = {"replicas": [first]}
    admin.answers["GET /-/fleet"] = answer
    done = await beside("fleet", "--storage", str(tmp_path))
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[1] == ["http://10.0.0.1:5000", "1.0", "2h", *["1.0GiB", "of", "2.0GiB", "1", "ok"]]
    assert f"docker.io/library/app@{DIGEST}: 1.0MiB of ?" in done.stdout
    printed = await beside("fleet", "--json", "--storage", str(tmp_path))
    assert json.loads(printed.stdout) == answer


async def test_without_a_fleet(admin: FakeAdmin, tmp_path: Path) -> None:
    admin.answers["GET /-/fleet"] = {"replicas": []}
    refused(await beside("fleet", "--storage", str(tmp_path)), "there is no fleet", status=0)
