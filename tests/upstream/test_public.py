"""A registry under a public name, over TLS: the permitted targets of credentials and requests.

``PRIVATE`` stands for what only our own network can reach. Something listens there with a
certificate that is trusted, so a request that is let through arrives and is seen.
"""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.fakes import content
from tests.fakes.faults import header, redirect, status
from tests.fakes.network import PRIVATE, Names
from tests.fakes.records import Server
from tests.fakes.tls import Certificate, certificate
from tests.fakes.upstream import FakeUpstream
from tests.running import Answer, Proxy, Start

IMAGE = content.image(1)
BLOB = f"/v2/app/blobs/{IMAGE.layers[0]}"
MANIFEST = "/v2/app/manifests/latest"
USER = {"username": "alice", "password": "wonderland"}
NAMES: dict[Server, str] = {
    "registry": "registry.example.com",
    "token": "auth.example.com",
    "cdn": "cdn.example.net",
}
INSIDE = "metadata.example.net"
SINGLE: dict[Server, str] = {"registry": "hub", "token": "tokens", "cdn": "cdn"}


@dataclass
class World:
    """A public registry with its names, and what lies inside our network: ``inside``.

    ``plain`` is public and speaks no TLS.
    """

    names: Names
    certificate: Certificate
    registry: FakeUpstream
    inside: FakeUpstream
    plain: FakeUpstream
    start: Start

    async def proxy(self, **hub: Any) -> Proxy:
        tls = {"ca_file": str(self.certificate.authority)}
        hub = {"url": self.registry.url, "tls": tls, **hub}
        return await self.start(hub=hub, network=self.names.network)

    @property
    def is_entered(self) -> bool:
        """Whether anything inside our network was asked."""
        inside = self.inside
        return bool(inside.requests or inside.token_requests or inside.cdn_requests)


@pytest.fixture
async def world(start: Start, tmp_path: Path) -> AsyncIterator[World]:
    hosts = (*NAMES.values(), *SINGLE.values(), INSIDE, PRIVATE)
    made = certificate(tmp_path, hosts)
    names = Names({host: ["127.0.0.1"] for host in hosts} | {INSIDE: [PRIVATE]})
    async with AsyncExitStack() as stack:
        fakes = [
            FakeUpstream(ssl_context=made.server, names=NAMES),
            FakeUpstream(
                ssl_context=made.server,
                registry_host=PRIVATE,
                token_host=PRIVATE,
                cdn_host=PRIVATE,
            ),
            FakeUpstream(names=NAMES),
        ]
        for fake in fakes:
            await stack.enter_async_context(fake)
            fake.add("library/app", IMAGE)
            fake.auth.users = {USER["username"]: USER["password"]}
        yield World(names, made, *fakes, start)


def passwords(fake: FakeUpstream) -> list[str]:
    """The passwords that reached any server of ``fake`` but its token server."""
    records = [*fake.requests, *fake.cdn_requests]
    sent = [record.headers.get("Authorization", "") for record in records]
    return [value for value in sent if value.startswith("Basic ")]


def refused(answer: Answer, words: bytes = b"") -> None:
    assert answer.status == 502, answer.body
    assert words in answer.body


async def test_credentials_go_to_the_domain_and_content_comes_from_elsewhere(world: World) -> None:
    world.registry.auth.scheme = "bearer"
    world.registry.auth.anonymous = False
    world.registry.behaviour.redirects = {"blob"}
    proxy = await world.proxy(**USER)
    for path in (MANIFEST, BLOB):
        assert (await proxy.get(path)).status == 200
    assert world.registry.token_requests[0].headers["Authorization"].startswith("Basic ")
    assert not passwords(world.registry)
    assert all("Authorization" not in record.headers for record in world.registry.cdn_requests)


@pytest.mark.parametrize("challenge", ['Bearer realm="{token}/token"', 'Basic realm="data"'])
async def test_t30_the_cdn_of_a_public_registry_gets_no_answer_to_its_challenge(
    world: World, challenge: str
) -> None:
    fake = world.registry
    fake.auth.scheme = "bearer"
    fake.behaviour.redirects = {"blob"}
    proxy = await world.proxy(**USER)
    said = header("WWW-Authenticate", challenge.format(token=fake.token_url))
    rule = fake.fault(status(401), said, kind="data")
    refused(await proxy.get(BLOB))
    assert rule.used == 1
    assert len(fake.token_requests) == 1
    assert not passwords(fake)


@pytest.mark.parametrize("user", [{}, USER], ids=["anonymous", "user"])
async def test_t30_a_realm_without_tls_is_not_asked(world: World, user: dict[str, str]) -> None:
    world.registry.auth.scheme = "bearer"
    world.registry.auth.realm = f"{world.plain.token_url}/token"
    refused(await (await world.proxy(**user)).get(MANIFEST), b"no usable token server")
    assert not world.plain.token_requests


async def test_t30_hosts_without_a_registrable_domain_do_not_share_one(
    world: World, start: Start
) -> None:
    async with FakeUpstream(ssl_context=world.certificate.server, names=SINGLE) as fake:
        fake.add("library/app", IMAGE)
        fake.auth.scheme = "bearer"
        fake.auth.users = {USER["username"]: USER["password"]}
        proxy = await world.proxy(url=fake.url, **USER)
        refused(await proxy.get(MANIFEST), b"not trusted")
        assert not fake.token_requests


async def test_t30_another_host_below_a_public_suffix_is_not_trusted(world: World) -> None:
    world.registry.auth.scheme = "bearer"
    world.registry.auth.realm = world.registry.token_url.replace("auth.example", "evil") + "/token"
    refused(await (await world.proxy(**USER)).get(MANIFEST), b"not trusted")
    assert not world.registry.token_requests


@pytest.mark.parametrize("host", [PRIVATE, INSIDE], ids=["address", "name"])
async def test_t31_redirects_into_our_network_are_not_followed(world: World, host: str) -> None:
    proxy = await world.proxy()
    target = world.inside.cdn_url.replace(PRIVATE, host)
    world.registry.fault(redirect(f"{target}/v2/library/app/manifests/latest"))
    refused(await proxy.get(MANIFEST), b"private address")
    assert not world.is_entered


@pytest.mark.parametrize("host", [PRIVATE, INSIDE], ids=["address", "name"])
async def test_t31_realms_in_our_network_are_not_asked(world: World, host: str) -> None:
    world.registry.auth.scheme = "bearer"
    world.registry.auth.realm = world.inside.token_url.replace(PRIVATE, host) + "/token"
    refused(await (await world.proxy()).get(MANIFEST), b"private address")
    assert not world.is_entered


async def test_t31_a_token_server_does_not_redirect_us(world: World) -> None:
    world.registry.auth.scheme = "bearer"
    rule = world.registry.fault(redirect(f"{world.inside.token_url}/token"), kind="token")
    refused(await (await world.proxy(**USER)).get(MANIFEST))
    assert rule.used
    assert not world.is_entered


@pytest.mark.parametrize(
    "addresses", [[PRIVATE, "127.0.0.1"], ["127.0.0.1", PRIVATE]], ids=["first", "last"]
)
@pytest.mark.parametrize("host", [PRIVATE, INSIDE], ids=["address", "name"])
async def test_t52_one_private_address_among_several_opens_nothing(
    world: World, addresses: list[str], host: str
) -> None:
    world.names.addresses[NAMES["registry"]] = addresses
    proxy = await world.proxy()
    target = world.inside.cdn_url.replace(PRIVATE, host)
    world.registry.fault(redirect(f"{target}/v2/library/app/manifests/latest"))
    refused(await proxy.get(MANIFEST), b"private address")
    assert NAMES["registry"] in world.names.asked
    assert not world.is_entered


@pytest.mark.parametrize(("private", "code"), [(False, 502), (True, 200)])
@pytest.mark.parametrize("host", [PRIVATE, INSIDE, NAMES["registry"]])
async def test_t52_an_upstream_whose_address_becomes_private_opens_nothing(
    world: World, host: str, private: bool, code: int
) -> None:
    """Its own port may be dialled, as in an intranet. To be sent on takes ``private: true``."""
    world.names.addresses[NAMES["registry"]] = [PRIVATE]
    inside = world.inside
    inside.behaviour.redirects = {"blob"}
    inside.names["cdn"] = host
    url = inside.url.replace(PRIVATE, NAMES["registry"])
    proxy = await world.proxy(url=url, private=private)
    assert (await proxy.get(MANIFEST)).status == 200
    answer = await proxy.get(BLOB)
    assert answer.status == code, answer.body
    assert bool(inside.cdn_requests) == private


async def test_a_redirect_from_https_to_http_is_not_followed(world: World) -> None:
    proxy = await world.proxy()
    target = f"{world.plain.url}/v2/library/app/manifests/latest"
    world.registry.fault(redirect(target))
    refused(await proxy.get(MANIFEST), b"not followed")
    assert not world.plain.requests
