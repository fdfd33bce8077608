"""ECR through botocore, against moto over HTTP, and ECR Public against an endpoint of ours."""

import base64
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from moto.moto_server.threaded_moto_server import ThreadedMotoServer

from proxy.core.errors import CredentialsRejected
from proxy.settings.upstreams import AWSCredentials
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.aws import AWS, region_of
from proxy.upstream.credentials.renewing import UNKNOWN_LIFE, RenewingCredentials
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Start
from tests.upstream.credentials.endpoints import Asked, endpoint

IMAGE = content.image(1)
HOST = "123456789012.dkr.ecr.eu-west-1.amazonaws.com"
ROLE = "arn:aws:iam::210987654321:role/puller"
PLAIN = AWSCredentials()


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine of AWS's without any credentials of the developer's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_METADATA_SERVICE_TIMEOUT", "30")  # of a loaded machine; else a second


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch, moto: str) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")


@pytest.mark.parametrize(
    ("host", "region"),
    [
        (HOST, "eu-west-1"),
        ("123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com", "us-gov-west-1"),
        ("123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn", "cn-north-1"),
        ("123456789012.dkr-ecr.eu-west-1.on.aws", "eu-west-1"),
        ("public.ecr.aws", "us-east-1"),
        ("ecr.example.com", None),
        ("12345.dkr.ecr.eu-west-1.amazonaws.com", None),
    ],
)
def test_the_region_is_in_the_host_name(host: str, region: str | None) -> None:
    assert region_of(host) == region


async def test_ecr_with_keys_of_the_environment(keys: None) -> None:
    credentials = RenewingCredentials("aws", AWS(HOST, PLAIN).fetch)
    assert await credentials.get("app") == Credential("AWS", "123456789012-auth-token")
    assert credentials.expires_in == pytest.approx(UNKNOWN_LIFE, abs=60), "moto says 2015"


async def test_a_role_is_assumed_first(keys: None) -> None:
    issued = await AWS(HOST, AWSCredentials(role_arn=ROLE)).fetch()
    assert issued.value == Credential("AWS", "210987654321-auth-token"), "of the role's account"


async def test_irsa(monkeypatch: pytest.MonkeyPatch, moto: str, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("a.b.c")
    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    monkeypatch.setenv("AWS_ROLE_ARN", ROLE)
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    issued = await AWS(HOST, PLAIN).fetch()
    assert issued.value == Credential("AWS", "210987654321-auth-token")


async def test_the_role_of_an_instance(monkeypatch: pytest.MonkeyPatch, moto: str) -> None:
    keys = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": "ASIAEXAMPLE",
        "SecretAccessKey": "s3cret",
        "Token": "t",
        "Expiration": "2999-01-01T00:00:00Z",
    }

    def answer(asked: Asked) -> tuple[int, object]:
        if asked.path == "/latest/api/token":
            return 200, "session"
        return (200, keys) if asked.path.endswith("/node") else (200, "node")

    with endpoint(answer) as (address, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
        monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://{address}")
        issued = await AWS(HOST, PLAIN).fetch()
    assert issued.value == Credential("AWS", "123456789012-auth-token")
    assert asked[0].method == "PUT", "IMDSv2"


async def test_ecr_public(monkeypatch: pytest.MonkeyPatch, keys: None) -> None:
    token = base64.b64encode(b"AWS:public-secret").decode()
    data = {"authorizationToken": token, "expiresAt": 4102444800}
    with endpoint(lambda _: (200, {"authorizationData": data})) as (address, asked):
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECR_PUBLIC", f"http://{address}")
        issued = await AWS("public.ecr.aws", PLAIN).fetch()
    assert issued.value == Credential("AWS", "public-secret")
    assert issued.life is not None
    assert issued.life > 86400
    assert asked[0].headers["x-amz-target"].endswith(".GetAuthorizationToken")
    assert "/us-east-1/ecr-public/" in asked[0].headers["authorization"]


async def test_no_credentials_of_aws() -> None:
    with pytest.raises(CredentialsRejected, match="AWS returns no credentials: NoCredentialsError"):
        await AWS(HOST, PLAIN).fetch()


async def test_a_profile_that_is_missing() -> None:
    with pytest.raises(CredentialsRejected, match="AWS returns no credentials: ProfileNotFound"):
        await AWS(HOST, AWSCredentials(profile="nobody")).fetch()


async def test_a_refusal_shows_its_code_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch, keys: None
) -> None:
    refusal = {"__type": "AccessDeniedException", "message": "s3cret-of-the-answer"}
    with endpoint(lambda _: (400, refusal)) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", f"http://{address}")
        with pytest.raises(CredentialsRejected) as caught:
            await AWS(HOST, PLAIN).fetch()
    assert caught.value.message == "AWS returns no credentials: ClientError AccessDeniedException"


@pytest.mark.parametrize("pair", [b"AWS", b"\xff", b""])
async def test_an_authorization_token_that_is_none(
    monkeypatch: pytest.MonkeyPatch, keys: None, pair: bytes
) -> None:
    data = {"authorizationToken": base64.b64encode(pair).decode(), "expiresAt": 4102444800}
    with endpoint(lambda _: (200, {"authorizationData": [data]})) as (address, _):
        monkeypatch.setenv("AWS_ENDPOINT_URL_ECR", f"http://{address}")
        with pytest.raises(CredentialsRejected, match="AWS return"):
            await AWS(HOST, PLAIN).fetch()


async def test_a_proxy_pulls_from_ecr(start: Start, upstream: FakeUpstream, keys: None) -> None:
    upstream.auth.scheme = "basic"
    upstream.auth.anonymous = False
    upstream.auth.users = {"AWS": "123456789012-auth-token"}
    upstream.add("library/app", IMAGE)
    proxy = await start(hub={"credentials": {"aws": {"region": "eu-west-1"}}})
    assert (await proxy.get("/v2/app/manifests/latest")).status == 200
    stats = json.loads((await proxy.get("/-/stats")).body)
    assert stats["upstreams"]["docker.io"]["credentials"]["kind"] == "aws"
    assert "auth-token" not in proxy.log.getvalue() + str(stats)
