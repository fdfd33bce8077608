"""Every call into the file system and SQLite, failed in turn while a client pulls.

The calls are found by watching a pull, and again by watching how failures are dealt with, until no
new ones show: there is no list to forget one in.
"""

import itertools
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from aiohttp import ClientPayloadError

from proxy.core.errors import ConfigError, StorageError
from proxy.storage.directory import Directory
from proxy.storage.disk import DiskBlob
from tests.failing import READ_ONLY, WRITES, FailingDisk, Failure, Fault, Site, faults_of
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.leaks import assert_sound, at_rest, nothing_left, opened_below, working
from tests.running import Proxy, started

REPO = "library/app"
SIZES = (3000, 300_000)  # one is written on the loop, one in threads
TRIES = 3
SMALL = {"storage": {"max_size": "1MiB", "min_free": 4096}, "memory": {"manifests": 1}}
"""Each image evicts an older one; the disk is asked what is free; manifests are read from it."""

LIMIT = 1 << 20


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> FailingDisk:
    monkeypatch.setattr("proxy.content.free_space.FRESH_SECONDS", -1.0)  # asked each time
    monkeypatch.setattr("proxy.services.oci_index.PUBLISH_SECONDS", 3600.0)  # once, at the start
    return FailingDisk(monkeypatch)


@dataclass
class Client:
    """Pulls as a client of containers does, and tries again what visibly broke."""

    proxy: Proxy
    broken: int = 0

    async def pull(self, image: content.Image) -> None:
        await self._get("manifests", tag_of(image), image.manifest)
        await self._get("manifests", image.digest, image.manifest)
        for digest, body in image.blobs.items():
            await self._get("blobs", digest, body)

    async def _get(self, kind: str, name: str, expected: bytes) -> None:
        for _ in range(TRIES):
            async with self.proxy.client.get(f"/v2/{REPO}/{kind}/{name}") as answer:
                assert answer.status == 200, (kind, name, answer.status, await answer.text())
                got = bytearray()
                try:
                    async for piece in answer.content.iter_any():
                        got += piece
                except ClientPayloadError:
                    assert kind == "blobs"
                    assert expected.startswith(got)
                    assert len(got) < len(expected)
                    self.broken += 1
                    continue
            assert bytes(got) == expected, "a complete body of other bytes"
            return
        raise AssertionError(f"{name} cannot be had although upstream has it")


@dataclass(frozen=True)
class Case:
    """From its ``first`` call in a pull on a site fails, once or until all is over."""

    site: Site
    fault: Fault
    first: int
    lasts: bool

    def __str__(self) -> str:
        times = "from then on" if self.lasts else "once"
        return f"{self.site}, call {self.first}, {times}: {self.fault.name}"

    def failure(self) -> Failure:
        last = float("inf") if self.lasts else self.first
        return Failure(self.site.__eq__, self.fault, self.first, last)


def cases(site: Site) -> Iterator[Case]:
    for fault in faults_of(site.call):
        for first, lasts in ((1, False), (2, False), (1, True)):
            yield Case(site, fault, first, lasts)


def tag_of(image: content.Image) -> str:
    return image.digest.removeprefix("sha256:")


def used_blocks(storage: Path) -> int:
    files = [
        path for name in ("blobs", "spool", "quarantine") for path in (storage / name).rglob("*")
    ]
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in files if path.is_file())


class Trial:
    """A small running cache, pulled from while one thing after another fails."""

    def __init__(self, proxy: Proxy, upstream: FakeUpstream) -> None:
        self.proxy = proxy
        self._upstream = upstream
        self._images = (content.image(seed, SIZES) for seed in itertools.count())
        self._before = working()

    async def pull(self) -> content.Image:
        """Pull an image that is new, and again when it is held."""
        image = next(self._images)
        self._upstream.add(REPO, image, tag_of(image))
        await self.pull_again(image)
        return image

    async def pull_again(self, image: content.Image) -> None:
        for _ in range(2):
            await Client(self.proxy).pull(image)
            await self.proxy.settled()

    async def survives(self, disk: FailingDisk, *failures: Failure) -> str | None:
        """Let something happen during a pull; return what went wrong, None for nothing."""
        errors = self.errors
        try:
            with disk.failing(*failures):
                image = await self.pull()
            if failures[0].fired and self.errors == errors and failures[0].fault.is_felt:
                return "not counted"
            await self.pull_again(image)
            if "unlink" in disk.failed:
                self._take_away_what_is_empty()
            await at_rest(self.proxy, self._before)
        except AssertionError as error:
            return f"{error!r}"[:300]
        told = self.proxy.stats["cache"]["bytes"]
        used = used_blocks(self.proxy.storage)
        return None if used <= told <= LIMIT else f"{used} bytes used, {told} counted"

    def _take_away_what_is_empty(self) -> None:
        """What could not be unlinked is swept at the next start; until then it takes no room."""
        for left in self.proxy.spooled():
            if not left.stat().st_blocks:
                left.unlink()

    @property
    def errors(self) -> int:
        return int(self.proxy.stats["cache"]["storage_errors"])


@pytest.fixture
async def trial(
    disk: FailingDisk,
    upstream: FakeUpstream,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Trial]:
    # A page cache that has nothing, or it would depend on the machine which calls a pull makes.
    monkeypatch.setattr(DiskBlob, "read_cached", lambda _: None)
    async with nothing_left(), started(upstream, tmp_path / "cache", clock, dict(SMALL)) as proxy:
        trial = Trial(proxy, upstream)
        for _ in range(4):  # until it evicts
            await trial.pull()
        disk.seen.clear()
        await trial.pull()
        yield trial


@pytest.mark.timeout(300)
async def test_no_failing_call_fails_a_pull(trial: Trial, disk: FailingDisk) -> None:
    revealed: dict[Site, tuple[Failure, ...]] = dict.fromkeys(disk.seen, ())
    todo, never, problems = sorted(disk.seen), [], []
    for site in todo:
        fired = 0
        for case in cases(site):
            failure, *others = case.failure(), *map(replace, revealed[site])
            problem = await trial.survives(disk, failure, *others)
            if problem:
                problems.append(f"{case}: {problem}")
            fired += failure.fired
            for new in sorted(disk.seen - revealed.keys()):
                revealed[new] = (case.failure(), *others)
                todo.append(new)
        # Whether bytes are read back depends on how far the thread is that writes them.
        if not fired and not revealed[site] and site.call != "pread":
            never.append(str(site))
    assert not problems, "\n".join(problems)
    assert not never, "each of these was passed in an undisturbed pull"


async def test_a_failure_whose_leftovers_cannot_be_removed(trial: Trial, disk: FailingDisk) -> None:
    problems = []
    for site in sorted(site for site in disk.seen if site.call in WRITES):
        for fault in faults_of(site.call):
            stuck = Failure(lambda site: site.call == "unlink", READ_ONLY, last=float("inf"))
            problem = await trial.survives(disk, Failure(site.__eq__, fault), stuck)
            if problem:
                problems.append(f"{site} {fault.name}: {problem}")
    assert not problems, "\n".join(problems)


def test_no_failing_call_spoils_a_directory(disk: FailingDisk, tmp_path: Path) -> None:
    """It is taken, or refused in plain words; then nothing is left open, and it can be had again."""
    Directory(tmp_path / "first").close()
    numbers, problems = itertools.count(), []
    for site, first in itertools.product(sorted(disk.seen), range(1, 7)):
        for fault in faults_of(site.call):
            root = tmp_path / str(next(numbers))
            before = opened_below(tmp_path)
            with disk.failing(Failure(site.__eq__, fault, first)), suppress(ConfigError):
                Directory(root).close()
            Directory(root).close()
            (root / "spool/left").write_bytes(b"by a former process")
            with disk.failing(Failure(site.__eq__, fault, first)), suppress(ConfigError):
                Directory(root).close()
            Directory(root).close()
            if opened_below(tmp_path) != before:
                problems.append(f"{site}, call {first}: {fault.name}: left open")
            if list((root / "spool").iterdir()) or list(root.glob("*.new")):
                problems.append(f"{site}, call {first}: {fault.name}: left lying")
    assert len(disk.seen) > 15
    assert not problems, "\n".join(problems)


@pytest.mark.timeout(300)
async def test_no_failing_call_keeps_a_cache_from_starting_for_good(
    disk: FailingDisk, upstream: FakeUpstream, clock: Clock, tmp_path: Path
) -> None:
    """A start that meets a failure serves, or is refused in plain words; the next one is whole."""
    image = content.image(1, SIZES)
    upstream.add(REPO, image, tag_of(image))
    for _ in range(2):
        async with started(upstream, tmp_path / "cache", clock, {}) as proxy:
            await Client(proxy).pull(image)
        disk.seen, seen = set(), disk.seen
    problems = []
    for site in sorted(seen):
        for fault in faults_of(site.call):
            failure = Failure(site.__eq__, fault)
            try:
                with disk.failing(failure), suppress(ConfigError):
                    async with (
                        nothing_left(),
                        started(upstream, tmp_path / "cache", clock, {}) as proxy,
                    ):
                        await Client(proxy).pull(image)
                async with started(upstream, tmp_path / "cache", clock, {}) as proxy:
                    await Client(proxy).pull(image)
                    assert_sound(proxy.storage)
            except (AssertionError, StorageError, OSError, sqlite3.Error) as error:
                problems.append(f"{site}: {fault.name}: {error!r}"[:300])
    assert not problems, "\n".join(problems)
