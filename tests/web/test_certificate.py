"""The certificate of the server: renewed files are served once, and wrong ones never."""

import asyncio
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from structlog.testing import capture_logs

from proxy.core.errors import ConfigError
from proxy.settings import ServerTLS
from proxy.web import certificate
from proxy.web.certificate import Certificate
from tests.fakes import tls
from tests.running import until

ADDRESS = "127.0.0.1"


def written(folder: Path) -> ServerTLS:
    """Write a new certificate and its key into a folder."""
    folder.mkdir(exist_ok=True)
    tls.certificate(folder)
    return ServerTLS(cert_file=folder / "authority.pem", key_file=folder / "key.pem")


async def served(made: Certificate) -> str:
    """Return the certificate that a client gets now."""

    async def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(hang_up, ADDRESS, 0, ssl=made.context)
    port = server.sockets[0].getsockname()[1]
    try:
        return await asyncio.to_thread(ssl.get_server_certificate, (ADDRESS, port), timeout=30)
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def watched(made: Certificate, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[None]:
    monkeypatch.setattr(certificate, "POLL_SECONDS", 0.01)
    watching = asyncio.create_task(made.watch())
    yield
    watching.cancel()
    await asyncio.wait([watching])


async def test_renewed_files_are_loaded_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = written(tmp_path)
    made, stamps = Certificate(files), 0
    real = certificate._stamp

    def counted(tls: ServerTLS) -> tuple[tuple[int, int], ...]:
        nonlocal stamps
        stamps += 1
        return real(tls)

    monkeypatch.setattr(certificate, "_stamp", counted)
    assert await served(made) == files.cert_file.read_text()
    with capture_logs() as lines:
        async with watched(made, monkeypatch):
            await until(lambda: stamps > 2)
            assert lines == []
            written(tmp_path / "new")
            for name in ("key.pem", "authority.pem"):
                shutil.move(tmp_path / "new" / name, tmp_path / name)
            await until(lambda: any(line["event"] == "certificate renewed" for line in lines))
            looks = stamps
            await until(lambda: stamps > looks + 3)
    assert sum(line["event"] == "certificate renewed" for line in lines) == 1
    assert await served(made) == files.cert_file.read_text()


async def test_a_pair_that_does_not_match_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, other = written(tmp_path / "one"), written(tmp_path / "other")
    made, before = Certificate(files), files.cert_file.read_text()
    with capture_logs() as lines:
        async with watched(made, monkeypatch):
            shutil.copy(other.cert_file, files.cert_file)
            await until(lambda: any("not renewed" in line["event"] for line in lines))
            assert await served(made) == before
            files.key_file.unlink()
            count = len(lines)
            await until(lambda: len(lines) > count + 1)
            assert await served(made) == before
            shutil.copy(other.key_file, files.key_file)
            await until(lambda: any(line["event"] == "certificate renewed" for line in lines))
    assert await served(made) == other.cert_file.read_text()


async def test_other_files_are_used_or_refused_as_a_whole(tmp_path: Path) -> None:
    files, other = written(tmp_path / "one"), written(tmp_path / "other")
    made = Certificate(files)
    mixed = ServerTLS(cert_file=other.cert_file, key_file=files.key_file)
    with pytest.raises(ConfigError, match="expected a PEM certificate chain"):
        made.use(mixed)
    assert await served(made) == files.cert_file.read_text()
    made.use(other)
    assert await served(made) == other.cert_file.read_text()


def test_an_encrypted_key_is_refused_and_nobody_is_asked_for_its_password(tmp_path: Path) -> None:
    files = written(tmp_path)
    key = serialization.load_pem_private_key(files.key_file.read_bytes(), None)
    files.key_file.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigError, match="the key is encrypted"):
        Certificate(files)
