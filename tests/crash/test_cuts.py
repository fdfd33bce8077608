"""The power of the disk is cut under load, a few times; `make soak` does it for longer. Needs root."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.harness import Plan, run
from tests.crash.test_kills import SEED, assert_not_idle
from tests.parts.mounts import Disk
from tests.parts.process import command, wait_until, workdir

SIZE = 48 * 1024**2
CUTS = 8
SECONDS = 25.0


@contextmanager
def another_namespace(place: Path) -> Iterator[None]:
    """Have a process that keeps a copy of all mounts, as each container has one."""
    words = [command("unshare"), "--mount", command("sleep"), "300"]
    with subprocess.Popen(words) as process:
        mounts = Path(f"/proc/{process.pid}/mounts")
        ours = Path("/proc/self/ns/mnt").readlink()
        namespace = Path(f"/proc/{process.pid}/ns/mnt")
        try:
            wait_until(lambda: namespace.readlink() != ours, "a namespace")
            assert f" {place} " in mounts.read_text()
            yield
        finally:
            process.kill()


def synced(file: Path, data: bytes) -> None:
    with file.open("wb") as opened:
        opened.write(data)
        opened.flush()
        os.fsync(opened.fileno())
    directory = os.open(file.parent, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)


def test_what_was_synced_is_read_after_a_cut_whoever_else_has_the_disk_mounted() -> None:
    data = os.urandom(300_000)
    with workdir("cut") as root:
        disk = Disk(root / "disk", SIZE)
        synced(disk.place / "synced", data)
        (disk.place / "lost").write_bytes(data)
        with another_namespace(disk.place):
            disk.cut()
            disk.restore()
            assert (disk.place / "synced").read_bytes() == data
            assert not (disk.place / "lost").exists()
            synced(disk.place / "another", data)
        disk.close()


@pytest.mark.timeout(2 * SECONDS + 240)
async def test_a_fixed_course_of_power_cuts() -> None:
    report = await run(Plan(seed=SEED, kills=CUTS, seconds=SECONDS, cuts_power=True))
    assert_not_idle(report)
