"""Clients with certificates, over real TLS."""

import datetime
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientSession, TCPConnector
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from proxy.access.identity import Certificate
from proxy.web.client_certificate import names
from tests.fakes.content import image
from tests.fakes.tls import certificate
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start

PATH = "/v2/team/secret/manifests/latest"


@dataclass
class Authority:
    """Signs client certificates."""

    folder: Path

    def __post_init__(self) -> None:
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "authority")])
        made = self._builder("authority").add_extension(
            x509.BasicConstraints(ca=True, path_length=None), critical=True
        )
        self.file = self.folder / "clients.pem"
        signed = made.public_key(self.key.public_key()).sign(self.key, hashes.SHA256())
        self.file.write_bytes(signed.public_bytes(serialization.Encoding.PEM))

    def client(self, common_name: str, *uris: str) -> ssl.SSLContext:
        """Return the TLS context of a client with a certificate."""
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(common_name).public_key(key.public_key())
        if uris:
            found = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(u) for u in uris])
            builder = builder.add_extension(found, critical=False)
        pem = self.folder / f"{common_name}.pem"
        pem.write_bytes(
            builder.sign(self.key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
            + key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
        )
        context = plain()
        context.load_cert_chain(pem)
        return context

    def _builder(self, common_name: str) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.name)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
        )


def plain() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
async def proxy(
    start: Start, upstream: FakeUpstream, authority: Authority, tmp_path: Path
) -> Proxy:
    upstream.add("team/secret", image())
    server = certificate(tmp_path)
    return await start(
        tls={"cert_file": str(server.authority), "key_file": str(tmp_path / "key.pem")},
        access={
            "client_certificates": {"ca_file": str(authority.file)},
            "rules": [{"allow": "pull", "images": ["docker.io/team/**"], "to": ["user:node"]}],
        },
    )


@asynccontextmanager
async def client(proxy: Proxy, context: ssl.SSLContext) -> AsyncIterator[ClientSession]:
    connector = TCPConnector(ssl=context)
    async with ClientSession(f"https://{proxy.app.address}", connector=connector) as session:
        yield session


async def status(session: ClientSession, path: str = PATH, **headers: str) -> int:
    async with session.get(path, headers=headers) as response:
        await response.read()
        return response.status


@pytest.mark.one_process
async def test_a_certificate_says_who_a_client_is_on_the_fast_path_too(
    proxy: Proxy, authority: Authority
) -> None:
    async with client(proxy, authority.client("node")) as node:
        assert [await status(node) for _ in range(5)] == [200] * 5
        assert await status(node, "/v2/") == 200
        async with node.get("/metrics") as response:
            assert "millpond_prepared_answers_total 0.0" not in await response.text()
    async with client(proxy, authority.client("other")) as other:
        assert await status(other) == 403
    async with client(proxy, plain()) as nobody:
        assert await status(nobody) == 401


async def test_a_token_and_a_certificate_together(proxy: Proxy, authority: Authority) -> None:
    """A node logs in with what it has for Docker Hub, and its certificate counts."""
    async with client(proxy, authority.client("node")) as node:
        asked = "/-/token?scope=repository:team/secret:pull"
        async with node.get(asked, headers={"Authorization": "Basic aHViOmh1Yg=="}) as response:
            token = (await response.json())["token"]
        assert await status(node, Authorization=f"Bearer {token}") == 200
    async with client(proxy, plain()) as thief:  # the token alone opens nothing
        assert await status(thief, Authorization=f"Bearer {token}") == 401


async def test_a_certificate_of_another_authority_is_refused(proxy: Proxy, tmp_path: Path) -> None:
    folder = tmp_path / "another"
    folder.mkdir()
    async with client(proxy, Authority(folder).client("node")) as stranger:
        with pytest.raises(ClientError):
            await status(stranger)


@pytest.mark.parametrize(
    ("peer", "found"),
    [
        ({}, Certificate()),
        (
            {
                "subject": ((("organizationName", "acme"),), (("commonName", "node"),)),
                "subjectAltName": (("DNS", "a.b"), ("email", "a@b"), ("URI", "spiffe://x/y")),
            },
            Certificate("node", ("a@b",), ("a.b",), ("spiffe://x/y",)),
        ),
        (
            {"subject": ((("commonName", "one"),), (("commonName", "two"),))},
            Certificate(),
        ),
    ],
)
def test_the_names_in_a_certificate(peer: dict[str, Any], found: Certificate) -> None:
    assert names(peer) == found
