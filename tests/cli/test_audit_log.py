"""The real program's audit log: rotation, a full disk, kills, and limits that a reload changes."""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientSession

from tests.cli.test_signals import reload, until
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.parts.millpond import Millpond
from tests.parts.mounts import Others, tmpfs
from tests.parts.process import free_port, workdir

IMAGE = content.image(1, layers=(3_000_000,))
[LAYER] = IMAGE.layers
MANIFEST = "/v2/library/app/manifests/latest"
RULES = [{"allow": "pull"}]
needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")


@asynccontextmanager
async def served(root: Path, url: str, **access: Any) -> AsyncIterator[tuple[Millpond, Any]]:
    millpond = Millpond(root, url, free_port(), {"prefetch": {"blobs": 0}, "access": access})
    await asyncio.to_thread(millpond.start)
    try:
        async with ClientSession(millpond.url) as client:
            yield millpond, client
    finally:
        millpond.kill()


async def pull(client: ClientSession, agent: str) -> None:
    async with client.get(MANIFEST, headers={"User-Agent": agent}) as answer:
        assert answer.status == 200
        await answer.read()


def agents(file: Path) -> list[str]:
    """Return who pulled, by whole lines; a line that is not JSON fails the test."""
    if not file.exists():
        return []
    lines = [line for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return [json.loads(line)["user_agent"] for line in lines]


async def test_a_renamed_file_is_begun_anew_on_sighup_and_no_line_is_missing(
    upstream: FakeUpstream,
) -> None:
    upstream.add("library/app", IMAGE)
    with workdir("audit") as root:
        file = root / "audit.jsonl"
        async with served(root, upstream.url, rules=RULES, audit_file=str(file)) as (proxy, client):
            number = 0
            for generation in range(3):
                for _ in range(50):
                    await pull(client, str(number))
                    number += 1
                file.rename(root / f"audit.jsonl.{generation}")
                await pull(client, str(number))
                number += 1
                if generation == 1:
                    proxy.config.write_text("nonsense: 1\n")  # rotation does not depend on it
                proxy.signal(signal.SIGHUP)
                await until(file.exists, "the new file")
            await pull(client, str(number))
            await asyncio.to_thread(proxy.stop)
        found = [agents(root / f"audit.jsonl.{generation}") for generation in range(3)]
        assert [agent for part in (*found, agents(file)) for agent in part] == [
            str(each) for each in range(number + 1)
        ]
        assert file.stat().st_mode & 0o777 == 0o600


async def test_a_reload_can_turn_the_audit_log_on_elsewhere_and_limits_too(
    upstream: FakeUpstream,
) -> None:
    upstream.add("library/app", IMAGE)
    with workdir("audit") as root:
        one, two = root / "one", root / "two"
        async with served(root, upstream.url) as (proxy, client):
            await pull(client, "before")
            await reload(proxy, access={"rules": RULES, "audit_file": str(one)})
            await pull(client, "first")
            await until(lambda: agents(one) == ["first"], "the line")
            await reload(
                proxy,
                access={
                    "rules": RULES,
                    "audit_file": str(two),
                    "limits": {"bytes_per_second": "1MB/s"},
                },
            )
            began = time.monotonic()
            async with client.get(f"/v2/library/app/blobs/{LAYER}") as answer:
                assert len(await answer.read()) == 3_000_000
            assert time.monotonic() - began >= 1.6, "1 MB at once, 2 MB in 2 seconds"
            await pull(client, "second")
            await until(lambda: agents(two) == ["second"], "the line")
            assert agents(one) == ["first"]


async def test_policies_and_the_rule_that_allowed_a_pull_are_in_it(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    upstream.add("library/miner", IMAGE)
    policies = [
        {"name": "no miners", "images": ["docker.io/library/miner"], "deny": True},
        {"name": "small", "images": ["**"], "max_image_size": "1MB", "audit": True},
    ]
    with workdir("audit") as root:
        file = root / "audit.jsonl"
        access = {"rules": RULES, "audit_file": str(file)}
        more = {"policies": policies, "access": access, "prefetch": {"blobs": 0}}
        millpond = Millpond(root, upstream.url, free_port(), more)
        await asyncio.to_thread(millpond.start)
        try:
            async with ClientSession(millpond.url) as client:
                for path in (MANIFEST, MANIFEST, "/v2/library/miner/manifests/latest"):
                    async with client.get(path) as answer:
                        assert answer.status == (403 if "miner" in path else 200)
        finally:
            await asyncio.to_thread(millpond.stop)
        found = [json.loads(line) for line in file.read_text().splitlines()]
    assert {line["rule"] for line in found} == {"1: allow pull ** to everybody"}
    assert [(line["outcome"], line["policy"], line["status"]) for line in found] == [
        *[("would deny", "small", 200)] * 2,
        ("denied", "no miners", 403),
    ]


@needs_root
async def test_a_full_disk_makes_it_unready_and_loses_no_line(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    with workdir("audit") as root, tmpfs(root / "disk", 256 * 1024) as disk:
        file = disk / "audit.jsonl"
        async with served(root, upstream.url, rules=RULES, audit_file=str(file)) as (proxy, client):
            await pull(client, "0")
            others = Others(disk)
            others.take_all()
            number = 1
            while not await reasons(client):
                await pull(client, str(number))
                number += 1
                await asyncio.sleep(0.01)
            for _ in range(100):
                await pull(client, str(number))
                number += 1
            assert "No space left" in (await reasons(client))["audit log"]
            assert proxy.events("lines cannot be written")
            async with client.get("/metrics") as answer:
                text = await answer.text()
            failures = re.search(r"^millpond_audit_failures_total (\S+)$", text, re.MULTILINE)
            assert failures is not None
            assert float(failures[1]) > 0
            others.leave(200 * 1024)
            async with asyncio.timeout(30):
                while await reasons(client):
                    await asyncio.sleep(0.05)
            await pull(client, str(number))
            await asyncio.to_thread(proxy.stop)
            assert agents(file) == [str(each) for each in range(number + 1)]


async def reasons(client: ClientSession) -> dict[str, str]:
    async with client.get("/-/readyz") as answer:
        said: dict[str, dict[str, str]] = await answer.json()
        return said.get("reasons", {})


async def test_a_kill_tears_no_line_and_loses_only_the_last_moment(upstream: FakeUpstream) -> None:
    upstream.add("library/app", IMAGE)
    with workdir("audit") as root:
        file = root / "audit.jsonl"
        async with served(root, upstream.url, rules=RULES, audit_file=str(file)) as (proxy, client):
            await pull(client, "0")
            await until(lambda: agents(file) == ["0"], "the line")

            async def hammer() -> None:
                while True:
                    await pull(client, "1")

            tasks = [asyncio.create_task(hammer()) for _ in range(4)]
            await until(lambda: len(agents(file)) > 200, "some lines")
            proxy.kill()
            for result in await asyncio.gather(*tasks, return_exceptions=True):
                assert isinstance(result, ClientConnectionError)
            whole = len(agents(file))
            with file.open("ab") as torn:
                torn.write(b'{"time":"2026')
            await asyncio.to_thread(proxy.start)
            async with ClientSession(proxy.url) as again:
                await pull(again, "2")
            await asyncio.to_thread(proxy.stop)
        lines = file.read_bytes().split(b"\n")
        assert lines[whole] == b'{"time":"2026'
        assert json.loads(lines[whole + 1])["user_agent"] == "2"
        assert lines[whole + 2 :] == [b""]


async def test_a_directory_that_goes_missing_is_reported_and_the_lines_are_kept(
    upstream: FakeUpstream,
) -> None:
    upstream.add("library/app", IMAGE)
    with workdir("audit") as root:
        folder = root / "folder"
        folder.mkdir()
        file = folder / "audit.jsonl"
        access = {"rules": RULES, "audit_file": str(file)}
        async with served(root, upstream.url, **access) as (proxy, client):
            folder.rename(root / "gone")
            (root / "moved").mkdir()
            await reload(proxy, access=access | {"audit_file": str(root / "moved" / "a.jsonl")})
            await pull(client, "1")
            await until(lambda: agents(root / "moved" / "a.jsonl") == ["1"], "the line")
            assert await reasons(client) == {}
