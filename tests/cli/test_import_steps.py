"""The server dies between two steps of an import: all of its images are there, or none."""

import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from proxy.core.errors import StorageError
from proxy.index.threads import Threads, Write
from proxy.services.importing import Importer
from tests.cli.command import beside
from tests.cli.test_bundles import ONE, TWO, layout
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.running import started

OFFLINE: dict[str, Any] = {"offline": True}
IMAGES = ("library/one/manifests/1", "acme/two/manifests/2")


@pytest.fixture
async def bundle(upstream: FakeUpstream, clock: Clock, tmp_path: Path) -> Path:
    """A bundle of two pinned images."""
    upstream.add("library/one", ONE, tags=["1"])
    upstream.add("acme/two", TWO, tags=["2"])
    path = tmp_path / "two.tar"
    async with started(upstream, tmp_path / "outside", clock, {}) as outside:
        storage = ("--storage", str(outside.storage))
        for name in ("one:1", "acme/two:2"):
            assert (await beside("pin", name, "--pull", *storage)).returncode == 0
        done = await beside("export", "--pinned", "-o", str(path), *storage)
        assert done.returncode == 0, done
    return path


def copied(storage: Path, copy: Path) -> None:
    """Copy a cache as a kill would leave it now."""
    shutil.copytree(storage, copy, ignore=shutil.ignore_patterns("*.sock", "index"))
    (copy / "index").mkdir()
    for file in (storage / "index").glob("index.db"):
        with (
            sqlite3.connect(f"file:{file}?mode=ro", uri=True) as now,
            sqlite3.connect(copy / "index" / file.name) as then,
        ):
            now.backup(then)
        now.close()
        then.close()


async def seen(upstream: FakeUpstream, storage: Path, clock: Clock) -> dict[str, int]:
    """Return how many images, digests, tags with a history, pins and imports a cache shows."""
    async with started(upstream, storage, clock, dict(OFFLINE)) as proxy:
        digests = (f"library/one/manifests/{ONE.digest}", f"acme/two/manifests/{TWO.digest}")
        served = [(await proxy.get(f"/v2/{path}")).status == 200 for path in (*IMAGES, *digests)]
        histories = [
            bool(await proxy.history("docker.io", *image))
            for image in (("library/one", "1"), ("acme/two", "2"))
        ]
        beside_it = ("--storage", str(proxy.storage), "--json")
        pins = json.loads((await beside("pins", *beside_it)).stdout)["pins"]
        imports = (await beside("imports", *beside_it)).stdout.splitlines()
        return {
            "images": sum(served[:2]),
            "digests": sum(served[2:]),
            "histories": sum(histories),
            "pins": len(pins),
            "imports": len(imports),
        }


async def test_a_kill_between_two_steps_leaves_all_images_or_none(
    bundle: Path,
    upstream: FakeUpstream,
    clock: Clock,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    copies: list[Path] = []
    commit, submit = Importer.commit, Threads.submit
    async with started(upstream, tmp_path / "lab", clock, dict(OFFLINE)) as lab:

        def copy() -> None:
            copies.append(tmp_path / f"copy {len(copies)}")
            copied(lab.storage, copies[-1])

        def submitted(threads: Threads, write: Write) -> None:
            if is_committing:
                copy()
            submit(threads, write)

        async def committed(importer: Importer, contents: Any) -> Any:
            nonlocal is_committing
            is_committing = True
            try:
                return await commit(importer, contents)
            finally:
                is_committing = False
                copy()

        is_committing = False
        monkeypatch.setattr(Threads, "submit", submitted)
        monkeypatch.setattr(Importer, "commit", committed)
        words = ("import", str(bundle), "--insecure", "--storage", str(lab.storage))
        done = await beside(*words)
        assert done.returncode == 0, done
    monkeypatch.undo()
    found = [await seen(upstream, copy, clock) for copy in copies]
    parts = ("images", "digests", "histories", "pins", "imports")
    nothing = dict.fromkeys(parts, 0)
    everything = dict.fromkeys(parts, 2) | {"imports": 1}
    assert found[0] == nothing
    assert found[-1] == everything
    assert all(one in (nothing, everything) for one in found), found


async def test_a_disk_that_fails_at_the_last_step_leaves_nothing(
    upstream: FakeUpstream, clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout(tmp_path / "layout", ONE, "docker.io/library/one:1")
    words = ("import", str(tmp_path / "layout"), "--insecure")
    async with started(upstream, tmp_path / "lab", clock, dict(OFFLINE)) as lab:
        storage = ("--storage", str(lab.storage))

        async def fails(*_: object) -> None:
            raise StorageError("the disk is full")

        with monkeypatch.context() as patch:
            patch.setattr(lab.app.content.tags, "add_images", fails)
            done = await beside(*words, *storage)
        assert done.returncode == 2
        assert "the import cannot be recorded: the disk is full" in done.stderr
        assert (await lab.get("/v2/library/one/manifests/1")).status == 404
        assert (await beside(*words, *storage)).returncode == 0
        assert (await lab.get("/v2/library/one/manifests/1")).status == 200
