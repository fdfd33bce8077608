"""Artifact Registry through google-auth: metadata server, workload identity, key file."""

import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from proxy.core.errors import CredentialsRejected
from proxy.settings.upstreams import GoogleCredentials
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.google import Google
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start
from tests.upstream.credentials.endpoints import Asked, endpoint

IMAGE = content.image(1)
ACCESS = {"access_token": "ya29.secret", "expires_in": 3599, "token_type": "Bearer"}


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine without any credentials of the developer's."""
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path / "gcloud"))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Asked]]:
    """A metadata server, and the requests to it."""

    def answer(asked: Asked) -> tuple[int, object]:
        path = asked.path.partition("?")[0]
        if path.endswith("/token"):
            return 200, ACCESS
        if path.endswith("/project/project-id"):
            return 200, "acme"
        if path.endswith("/universe/universe-domain"):
            return 200, "googleapis.com"
        account = {"email": "a@acme.example", "scopes": [], "aliases": ["default"]}
        return 200, account if "service-accounts" in path else ""

    with endpoint(answer) as (address, asked):
        monkeypatch.setenv("GCE_METADATA_HOST", address)
        monkeypatch.setenv("GCE_METADATA_IP", address)
        monkeypatch.setattr("google.auth.compute_engine._metadata._GCE_METADATA_HOST", address)
        yield asked


async def test_the_metadata_server(metadata: list[Asked]) -> None:
    issued = await Google(GoogleCredentials()).fetch()
    assert issued.value == Credential("oauth2accesstoken", "ya29.secret")
    assert issued.life == pytest.approx(3599, abs=120)
    assert all(asked.headers["metadata-flavor"] == "Google" for asked in metadata)


async def test_workload_identity_federation(tmp_path: Path) -> None:
    subject, file = tmp_path / "subject", tmp_path / "wif.json"
    subject.write_text("of.the.pod")
    with endpoint(lambda _: (200, ACCESS | {"issued_token_type": "x"})) as (address, asked):
        document = {
            "type": "external_account",
            "audience": "//iam.googleapis.com/projects/1/locations/global/x",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"http://{address}/v1/token",
            "credential_source": {"file": str(subject)},
        }
        file.write_text(json.dumps(document))
        issued = await Google(GoogleCredentials(key_file=file)).fetch()
    assert issued.value == Credential("oauth2accesstoken", "ya29.secret")
    assert parse_qs(asked[0].body)["subject_token"] == ["of.the.pod"]


async def test_a_key_file(tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    file = tmp_path / "key.json"
    with endpoint(lambda _: (200, ACCESS)) as (address, asked):
        document = {
            "type": "service_account",
            "client_email": "puller@acme.example",
            "private_key": key.decode(),
            "private_key_id": "1",
            "token_uri": f"http://{address}/token",
        }
        file.write_text(json.dumps(document))
        issued = await Google(GoogleCredentials(key_file=file)).fetch()
    assert issued.value == Credential("oauth2accesstoken", "ya29.secret")
    assert "jwt-bearer" in asked[0].body


async def test_a_key_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "key.json"
    for text, words in (
        ('{"private_key": "s3cret"}', "is neither a service account's key nor"),
        ("s3cret", "is neither a service account's key nor"),
        ('{"type": "service_account", "private_key": "s3cret"}', "no credentials: MalformedError"),
    ):
        file.write_text(text)
        with pytest.raises(CredentialsRejected, match=words) as caught:
            await Google(GoogleCredentials(key_file=file)).fetch()
        assert "s3cret" not in caught.value.message


async def test_a_token_server_that_refuses(tmp_path: Path) -> None:
    subject, file = tmp_path / "subject", tmp_path / "wif.json"
    subject.write_text("of.the.pod")
    with endpoint(lambda _: (400, {"error": "invalid_grant", "hint": "s3cret"})) as (address, _):
        document = {
            "type": "external_account",
            "audience": "x",
            "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
            "token_url": f"http://{address}/v1/token",
            "credential_source": {"file": str(subject)},
        }
        file.write_text(json.dumps(document))
        with pytest.raises(CredentialsRejected, match="no credentials: OAuthError") as caught:
            await Google(GoogleCredentials(key_file=file)).fetch()
    assert "s3cret" not in caught.value.message


async def test_a_proxy_pulls_from_artifact_registry(
    start: Start, upstream: FakeUpstream, metadata: list[Asked]
) -> None:
    upstream.auth.scheme = "bearer"
    upstream.auth.anonymous = False
    upstream.auth.users = {"oauth2accesstoken": "ya29.secret"}
    upstream.add("library/app", IMAGE)
    proxy = await start(hub={"credentials": {"google": {}}})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    assert "ya29" not in proxy.log.getvalue()
