"""Credentials: none, a configured user, or a password that another program renews."""

from pathlib import Path

import pytest

from proxy.core.errors import CredentialsRejected
from proxy.upstream.credentials import Credential, PasswordFile, StaticCredentials
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start

IMAGE = content.image(1)


async def test_credentials_of_the_configuration() -> None:
    assert await StaticCredentials().get("app") is None
    credential = await StaticCredentials(Credential("alice", "p:w ä")).get("app")
    assert credential is not None
    assert credential.basic == "Basic YWxpY2U6cDp3IMOk", "UTF-8, and only the first colon divides"
    assert "p:w" not in repr(credential)


@pytest.mark.parametrize("text", ["new\n", "new\r\n", "new"])
async def test_a_password_file_ends_with_or_without_a_newline(tmp_path: Path, text: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(f" {text}".encode())
    assert await PasswordFile("me", file).get("app") == Credential("me", " new")


async def test_basic_from_a_file_that_is_renewed(
    start: Start, upstream: FakeUpstream, tmp_path: Path
) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.auth.users = {"alice": "old"}
    upstream.add("library/app", IMAGE, tags=["a", "b"])
    file = tmp_path / "password"
    file.write_text("old\n")
    proxy = await start(hub={"username": "alice", "password_file": str(file)})
    assert (await proxy.get("/v2/app/manifests/a")).status == 200
    upstream.auth.users = {"alice": "new"}
    file.write_text("new\n")
    assert (await proxy.get("/v2/app/manifests/b")).status == 200


@pytest.mark.parametrize("text", [None, b"\xff\xfe"])
async def test_a_password_file_that_cannot_be_read_is_the_operators_fault(
    tmp_path: Path, text: bytes | None
) -> None:
    file = tmp_path / "password"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(CredentialsRejected, match="cannot be read"):
        await PasswordFile("me", file).get("app")
