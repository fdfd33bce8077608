"""Which errors count against the disk and which against a client's connection."""

import asyncio
import errno
import os
from pathlib import Path

import pytest
from aiohttp import ClientError

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, until

IMAGE = content.image(1, layers=(3_000_000,))
[LAYER] = IMAGE.layers
DATA = IMAGE.blobs[LAYER]
BLOB = f"/v2/library/app/blobs/{LAYER}"

OF_SOCKETS = (
    *("EPIPE", "ECONNRESET", "ECONNABORTED", "ENOTCONN", "ESHUTDOWN", "ETIMEDOUT", "EHOSTUNREACH"),
    *("EHOSTDOWN", "ENETUNREACH", "ENETDOWN", "ENETRESET", "ENOBUFS", "ENOMEM", "EPROTO"),
)
OF_DISKS = ("EIO", "ENXIO", "ENODATA", "EUCLEAN", "EBADMSG", "ESTALE", "EREMOTEIO")


@pytest.fixture(autouse=True)
async def held(upstream: FakeUpstream, proxy: Proxy) -> None:
    upstream.add("library/app", IMAGE)
    assert (await proxy.get(BLOB)).body == DATA
    await proxy.settled()


def failing_after(first: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `sendfile` send `first` bytes and then fail with `code`."""
    real = os.sendfile

    def failing(to: int, fd: int, offset: int, size: int) -> int:
        if offset >= first:
            raise OSError(code, os.strerror(code))
        return real(to, fd, offset, min(size, first - offset))

    monkeypatch.setattr(os, "sendfile", failing)


def quarantined(proxy: Proxy) -> list[Path]:
    return list((proxy.storage / "quarantine").iterdir())


@pytest.mark.one_process
@pytest.mark.parametrize("name", OF_SOCKETS)
async def test_t62_an_error_of_a_socket_leaves_the_blob_alone(
    proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bodies = upstream.bodies(LAYER)
    failing_after(1000, getattr(errno, name), monkeypatch)
    with pytest.raises((ClientError, ConnectionError)):
        await proxy.get(BLOB)
    monkeypatch.undo()
    assert proxy.held() == {LAYER}
    assert not quarantined(proxy)
    cache = proxy.stats["cache"]
    assert (cache["corrupted"], cache["storage_errors"]) == (0, 0)
    await until(lambda: '"client_left": true' in proxy.log.getvalue())
    assert (await proxy.get(BLOB)).body == DATA
    assert upstream.bodies(LAYER) == bodies, "nothing was fetched again"


@pytest.mark.parametrize("name", OF_DISKS)
async def test_t62_an_error_of_the_disk_sets_the_blob_aside(
    proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing_after(1000, getattr(errno, name), monkeypatch)
    assert (await proxy.get(BLOB)).body == DATA, "the rest comes from upstream"
    assert LAYER not in proxy.held()
    assert quarantined(proxy)
    assert proxy.stats["cache"]["corrupted"] == 1
    assert upstream.bodies(LAYER) == 2


@pytest.mark.parametrize("name", ["EINVAL", "ENOSYS", "EOPNOTSUPP"])
async def test_t62_a_file_system_without_sendfile_is_read_instead(
    proxy: Proxy, upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    failing_after(0, getattr(errno, name), monkeypatch)
    assert (await proxy.get(BLOB)).body == DATA
    assert (await proxy.get(BLOB, Range="bytes=5-99")).body == DATA[5:100]
    assert proxy.held() == {LAYER}
    assert upstream.bodies(LAYER) == 1


@pytest.mark.parametrize("name", ["EMFILE", "ENFILE", "ENOMEM"])
async def test_t62_a_lack_of_descriptors_or_memory_condemns_no_content(
    proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Verification that cannot open a file must not take it for a bad one."""
    code, real = getattr(errno, name), os.open
    refused = []

    def failing(path: object, *args: object, **more: object) -> int:
        if path == LAYER.partition(":")[2]:
            refused.append(path)
            raise OSError(code, os.strerror(code))
        return real(path, *args, **more)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "open", failing)
    async with asyncio.timeout(20):
        async with proxy.client.post("/-/verify") as answer:
            assert answer.status == 403, "only the admin socket may do this"
        await verify(proxy)
    monkeypatch.undo()
    assert refused
    assert proxy.held() == {LAYER}
    assert not quarantined(proxy)
    assert (await proxy.get(BLOB)).body == DATA


async def verify(proxy: Proxy) -> None:
    """Verify all content through the admin socket."""
    reader, writer = await asyncio.open_unix_connection(proxy.storage / "admin.sock")
    writer.write(b"POST /-/verify HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    said = await reader.read()
    writer.close()
    assert said.startswith(b"HTTP/1.1 200"), said
