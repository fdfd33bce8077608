"""Where an upstream may send us."""

import socket

import pytest
from aiohttp.abc import ResolveResult
from yarl import URL

from proxy.core.errors import UpstreamUnavailable
from proxy.upstream.guard import SYSTEM_NETWORK, Guard, GuardedResolver, is_address, is_private

PRIVATE = [
    "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0",
    "224.0.0.1", "255.255.255.255", "::", "::1", "fe80::1%eth0", "fec0::1", "fd00::1", "ff02::1",
    "2001:db8::1", "::ffff:127.0.0.1", "::ffff:0:10.1.2.3", "::10.1.2.3", "::127.0.0.1",
    "64:ff9b::10.1.2.3", "64:ff9b::169.254.169.254", "64:ff9b:1::808:808", "2002:a01:203::1",
    "2001:0:808:808:0:0:f5fe:fdfc", "2001:0:a01:203:0:0:f7f7:f7f7",
    "fe80::5efe:8.8.8.8", "fd00::200:5efe:8.8.8.8",
    "2606:2800:21f::5efe:10.1.2.3", "2606:2800:21f:0:200:5efe:10.1.2.3",
]  # fmt: skip
PUBLIC = [
    "93.184.215.14", "2606:2800:21f:cb07:6820:80da:af6b:8b2c", "::ffff:8.8.8.8", "::8.8.8.8",
    "::ffff:0:8.8.8.8", "64:ff9b::8.8.8.8", "2002:808:808::1", "2001:0:808:808:0:0:f7f7:f7f7",
    "2606:2800:21f::5efe:8.8.8.8",
]  # fmt: skip
OWN = "https://registry.example.com"


def guard(own: str = OWN, *trusted: str, private: bool = False) -> Guard:
    return Guard(URL(own), trusted, private=private, network=SYSTEM_NETWORK)


def at(host: str) -> URL:
    return URL.build(scheme="https", host=host)


def result(host: str) -> ResolveResult:
    return ResolveResult(hostname="x", host=host, port=443, family=socket.AF_INET, proto=0, flags=0)


@pytest.mark.parametrize("address", PRIVATE)
def test_t31_a_public_upstream_cannot_send_us_to_a_private_address(address: str) -> None:
    with pytest.raises(UpstreamUnavailable, match="private address"):
        guard().check(at(address))
    resolved = [result(address), result("93.184.215.14")]
    assert guard().permitted("evil.example.com", 443, resolved) == [resolved[1]]


@pytest.mark.parametrize(
    ("host", "is_one", "is_inside"),
    [
        ("10.0.0.1%eth0", False, True),
        ("fe80::1%", False, True),
        ("8.8.8.8", True, False),
        ("::1", True, True),
        ("localhost", False, False),
        ("10.0.0", False, False),
        ("", False, False),
    ],
)
def test_addresses_and_names(host: str, is_one: bool, is_inside: bool) -> None:
    assert (is_address(host), is_private(host)) == (is_one, is_inside)


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_permitted(address: str) -> None:
    guard().check(at(address))
    assert guard().permitted("cdn.example.com", 443, [result(address)])


@pytest.mark.parametrize(
    "own",
    ["http://10.0.0.5:5000", "http://[fd00::5]", "http://localhost:5000", "https://A.Localhost."],
)
def test_t52_an_address_in_the_url_makes_an_upstream_private(own: str) -> None:
    guard(own).check(at("10.0.0.6"))
    assert guard(own).permitted("storage.internal", 443, [result("10.0.0.6")])


def test_a_name_that_ends_like_a_local_one_is_none() -> None:
    with pytest.raises(UpstreamUnavailable):
        guard("https://notlocalhost").check(at("10.0.0.6"))


def test_t52_the_setting_makes_an_upstream_private_and_dns_does_not() -> None:
    private, public = guard(private=True), guard()
    for _ in range(2):
        private.check(at("10.0.0.6"))
        assert private.permitted("storage.internal", 443, [result("10.0.0.6")])
        with pytest.raises(UpstreamUnavailable):
            public.check(at("10.0.0.6"))
        assert not public.permitted("storage.internal", 443, [result("10.0.0.6")])
        assert public.permitted("registry.example.com", 443, [result("10.0.0.5")])
        assert not public.permitted("registry.example.com", 9000, [result("10.0.0.5")])


def test_hosts_that_the_operator_listed_may_be_private() -> None:
    listed = guard(OWN, "sso.internal")
    assert listed.permitted("sso.internal", 443, [result("10.0.0.5")])
    assert not listed.permitted("else.internal", 443, [result("10.0.0.5")])


def test_our_own_http_proxy_may_be_private() -> None:
    proxied = guard()
    proxied.permit_proxies([URL("http://proxy.internal:3128")])
    assert proxied.permitted("proxy.internal", 3128, [result("10.0.0.5")])
    assert not proxied.permitted("proxy.internal", 80, [result("10.0.0.5")])


async def test_by_dns_too() -> None:
    resolver = GuardedResolver(guard())
    with pytest.raises(OSError, match="private addresses only"):
        await resolver.resolve("localhost", 80)
    allowed = GuardedResolver(guard(OWN, "localhost"))
    assert await allowed.resolve("localhost", 80)
