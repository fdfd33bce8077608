"""Azure Container Registry through azure-identity, and the exchange at the registry."""

import base64
import json
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from proxy.core.errors import CredentialsRejected
from proxy.settings.upstreams import AzureCredentials
from proxy.upstream.credentials import Credential
from proxy.upstream.credentials.azure import USERNAME, Azure, _life
from proxy.upstream.transport import Transport
from tests.upstream import wiring
from tests.upstream.credentials.endpoints import Asked, endpoint

ENTRA = {
    "access_token": "entra-secret",
    "expires_in": "86400",
    "expires_on": "4102444800",
    "resource": "x",
}


def jwt(claims: object) -> str:
    payload = base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")
    return f"e30.{payload}.sig"


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any credentials of the developer's."""
    prefixes = ("AZURE_", "IDENTITY_", "MSI_")
    for name in [name for name in os.environ if name.startswith(prefixes)]:
        monkeypatch.delenv(name)


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Asked]]:
    """The identity endpoint of App Service, and the requests to it."""
    with endpoint(lambda _: (200, ENTRA)) as (address, asked):
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://{address}/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        yield asked


class Registry:
    """The end-point for exchanges; `answer` is its answer, `asked` what it got."""

    def __init__(self) -> None:
        self.answer: tuple[int, object] = (200, {"refresh_token": "refresh-secret"})
        self.asked: list[Asked] = []
        self.address = ""


@pytest.fixture
def registry() -> Iterator[Registry]:
    registry = Registry()
    with endpoint(lambda _: registry.answer) as (registry.address, registry.asked):
        yield registry


@pytest.fixture
async def transport(registry: Registry) -> AsyncIterator[Transport]:
    transport = wiring.transport(f"http://{registry.address}")
    yield transport
    await transport.close()


async def test_a_managed_identity_is_exchanged_at_the_registry(
    identity: list[Asked], registry: Registry, transport: Transport
) -> None:
    token = jwt({"exp": int(time.time()) + 2100})
    registry.answer = (200, {"refresh_token": token})
    issued = await Azure(transport, AzureCredentials(client_id="of-a-node")).fetch()
    assert issued.value == Credential(USERNAME, token)
    assert issued.life == pytest.approx(2100, abs=120)
    query = parse_qs(urlsplit(identity[0].path).query)
    assert query["resource"] == ["https://containerregistry.azure.net"]
    assert query["client_id"] == ["of-a-node"]
    [exchange] = registry.asked
    assert (exchange.method, exchange.path) == ("POST", "/oauth2/exchange")
    form = {name: values[0] for name, values in parse_qs(exchange.body).items()}
    assert form == {
        "grant_type": "access_token",
        "service": "127.0.0.1",
        "access_token": "entra-secret",
    }


async def test_the_identity_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, transport: Transport
) -> None:
    with endpoint(lambda _: (200, ENTRA)) as (address, asked):
        monkeypatch.setenv("AZURE_POD_IDENTITY_AUTHORITY_HOST", f"http://{address}")
        issued = await Azure(transport, AzureCredentials()).fetch()
    assert issued == (Credential(USERNAME, "refresh-secret"), None)
    assert asked[0].headers["metadata"] == "true"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((401, {"errors": [{"message": "s3cret"}]}), "answers 401 to a token exchange"),
        ((200, {}), "answers a token exchange without a token"),
        ((200, {"refresh_token": 5}), "answers a token exchange without a token"),
        ((200, "["), "answers a token exchange without a token"),
    ],
)
async def test_an_exchange_that_fails(
    identity: list[Asked],
    registry: Registry,
    transport: Transport,
    answer: tuple[int, object],
    words: str,
) -> None:
    registry.answer = answer
    with pytest.raises(CredentialsRejected, match=words) as caught:
        await Azure(transport, AzureCredentials()).fetch()
    assert "s3cret" not in caught.value.message


async def test_an_identity_that_is_refused(
    monkeypatch: pytest.MonkeyPatch, registry: Registry, transport: Transport
) -> None:
    with endpoint(lambda _: (400, {"error": "s3cret"})) as (address, _):
        monkeypatch.setenv("IDENTITY_ENDPOINT", f"http://{address}/token")
        monkeypatch.setenv("IDENTITY_HEADER", "header")
        with pytest.raises(CredentialsRejected, match="Azure returns no credentials: ") as caught:
            await Azure(transport, AzureCredentials()).fetch()
    assert "s3cret" not in caught.value.message
    assert not registry.asked


def test_a_workload_identity_is_tried_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, transport: Transport, tmp_path: Path
) -> None:
    import azure.identity  # noqa: PLC0415 - slow, and only this test needs it

    source = Azure(transport, AzureCredentials())
    assert len(source._identities(azure.identity)) == 2
    monkeypatch.setenv("AZURE_FEDERATED_TOKEN_FILE", str(tmp_path / "token"))
    monkeypatch.setenv("AZURE_CLIENT_ID", "client")
    monkeypatch.setenv("AZURE_TENANT_ID", "tenant")
    names = [type(each).__name__ for each in source._identities(azure.identity)]
    assert names == [
        "EnvironmentCredential",
        "WorkloadIdentityCredential",
        "ManagedIdentityCredential",
    ]


@pytest.mark.parametrize(
    "token", ["", "opaque", "a.b.c", "a.?.c", jwt({}), jwt({"exp": "soon"}), jwt([])]
)
def test_a_token_without_an_expiry(token: str) -> None:
    assert _life(token) is None
