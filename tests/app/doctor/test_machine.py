"""This machine: directory, space, disk, descriptors and port, each failing and passing."""

import asyncio
import os
import resource
import socket
from collections import namedtuple
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest

from proxy.app.doctor import machine
from proxy.app.doctor.machine import Machine
from tests.app.doctor.checking import says, settings_of
from tests.fakes import faults
from tests.fakes.upstream import FakeUpstream
from tests.parts.process import free_port
from tests.running import Proxy

Space = namedtuple("Space", "f_bavail f_blocks f_frsize f_files f_favail")


def made(folder: Path, **changes: Any) -> Machine:
    return Machine(settings_of(folder, {"url": "http://127.0.0.1:1"}, **changes))


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory that every user may enter: pytest's own are private."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        yield folder


async def test_a_directory_that_may_be_written(tmp_path: Path) -> None:
    says(made(tmp_path).permissions(), "ok", "is not there yet")
    (tmp_path / "cache").mkdir(mode=0o700)
    says(made(tmp_path).permissions(), "ok", "can be written, mode 700")
    (tmp_path / "cache").chmod(0o777)
    says(made(tmp_path).permissions(), "warning", "others may write", "chmod 700")


async def test_a_directory_that_may_not_be_written(shared: Path) -> None:
    (shared / "cache").mkdir(mode=0o755)
    os.seteuid(65534)  # the tests run as root, who may write anywhere
    try:
        says(made(shared).permissions(), "failed", "cannot be written", "chown")
        says(made(shared).disk(), "skipped", "cannot be written")
    finally:
        os.seteuid(0)


async def test_a_disk_is_measured_and_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    found = made(tmp_path).disk()
    assert found.status in ("ok", "warning"), found  # by the disk of the tests
    assert "/s, and one fsync takes" in found.detail
    assert not list((tmp_path / "cache").iterdir())


async def test_a_disk_that_is_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_measured", lambda _: (1e9, 0.001))
    says(made(tmp_path).disk(), "ok", "one fsync takes 1.0 ms")
    for measured in ((1e9, 0.5), (1e6, 0.001)):
        monkeypatch.setattr(machine, "_measured", lambda _, measured=measured: measured)
        says(made(tmp_path).disk(), "warning", "a faster disk for storage.path")


async def test_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_space(gib: float, files: int = 1_000_000) -> Machine:
        space = Space(int(gib * 2**20), 100 * 2**20, 1024, 10**7, files)
        monkeypatch.setattr(os, "statvfs", lambda _: space)
        return made(tmp_path, storage={"max_size": "50GiB", "min_free": "5GiB"})

    says(with_space(60).space(), "ok", "60.0GiB of 100.0GiB are free")
    says(with_space(2).space(), "failed", "less than min_free (5.0GiB)", "delete other files")
    says(with_space(60, files=9).space(), "failed", "only 9 files", "inodes")
    with_space(60)
    large = made(tmp_path, storage={"max_size": "200GiB", "min_free": 0})
    says(large.space(), "warning", "storage.max_size is 200.0GiB", "such as 80%")


async def test_descriptors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 65536))
    says(made(tmp_path).descriptors(), "ok", "65,536 open files allow")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    says(made(tmp_path).descriptors(), "failed", "256 open files", "LimitNOFILE=65536")


async def test_a_port_that_is_free(tmp_path: Path) -> None:
    port = free_port()
    says(await made(tmp_path, listen=f"127.0.0.1:{port}").port(), "ok", f"127.0.0.1:{port} is free")
    says(await made(tmp_path).port(), "skipped", "port 0")
    elsewhere = await made(tmp_path, listen="192.0.2.1:5000").port()
    says(elsewhere, "failed", "192.0.2.1:5000", "another address")


async def test_a_port_that_another_program_has(tmp_path: Path, upstream: FakeUpstream) -> None:
    taken = await made(tmp_path, listen=upstream.host).port()
    says(taken, "failed", "another program listens", "ss -ltnp")
    upstream.fault(faults.status(200, body=b'{"version": "1.0"}'))
    other = await made(tmp_path, listen=upstream.host).port()
    says(other, "failed", "another program listens")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        check = made(tmp_path, listen=f"127.0.0.1:{port}").port()
        says(await asyncio.wait_for(check, 60), "failed", "another program listens")


async def test_a_port_that_a_millpond_has(tmp_path: Path, proxy: Proxy) -> None:
    assert proxy.app.address is not None
    here = made(tmp_path, listen=proxy.app.address)
    says(await here.port(), "ok", "Millpond ", f"answers at {proxy.app.address}")


async def test_the_server_on_all_addresses_is_asked_on_this_machine(
    tmp_path: Path, proxy: Proxy
) -> None:
    assert proxy.app.address is not None
    everywhere = proxy.app.address.replace("127.0.0.1", "0.0.0.0")
    says(await made(tmp_path, listen=everywhere).port(), "ok", "Millpond ")
