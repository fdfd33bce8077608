"""The client's address behind proxies: headers count only from trusted proxies."""

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict, CIMultiDictProxy

from proxy.web import forwarded
from proxy.web.forwarded import TrustedProxies
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start, until

IMAGE = content.image(1)
LATEST = "/v2/app/manifests/latest"
TRUSTED = TrustedProxies(["127.0.0.1", "10.0.0.0/8", "fd00::/8"])
XFF, FORWARDED = "X-Forwarded-For", "Forwarded"


def headers(*pairs: tuple[str, str]) -> CIMultiDictProxy[str]:
    return CIMultiDictProxy(CIMultiDict(pairs))


@pytest.mark.parametrize(
    ("peer", "sent", "expected"),
    [
        ("127.0.0.1", [], "127.0.0.1"),
        ("192.0.2.9", [(XFF, "203.0.113.5")], "192.0.2.9"),
        ("192.0.2.9", [(FORWARDED, "for=203.0.113.5")], "192.0.2.9"),
        ("127.0.0.1", [(XFF, "203.0.113.5")], "203.0.113.5"),
        ("::ffff:127.0.0.1", [(XFF, "203.0.113.5")], "203.0.113.5"),
        ("fd00::1", [(XFF, "203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "1.1.1.1, 203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "1.1.1.1, 203.0.113.5, 10.1.2.3")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "1.1.1.1"), (XFF, "203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "10.0.0.2, 10.0.0.3")], "10.0.0.2"),
        ("127.0.0.1", [(XFF, "203.0.113.5:4711")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "[2001:db8::7]:4711")], "2001:db8::7"),
        ("127.0.0.1", [(XFF, "2001:DB8:0::7")], "2001:db8::7"),
        ("127.0.0.1", [(XFF, "::ffff:203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "garbage, 203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "203.0.113.5, garbage")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "203.0.113.5, ")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "203.0.113.5, garbage, 10.0.0.7")], "10.0.0.7"),
        ("127.0.0.1", [(XFF, "")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "fe80::1%eth0")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "[2001:db8::7")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "[2001:db8::7]x")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "203.0.113.005")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "3405803781")], "127.0.0.1"),
        ("127.0.0.1", [(FORWARDED, "for=203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(FORWARDED, "For=203.0.113.5;proto=https;by=10.0.0.1")], "203.0.113.5"),
        ("127.0.0.1", [(FORWARDED, 'proto=https; for="[2001:db8::7]:4711"')], "2001:db8::7"),
        ("127.0.0.1", [(FORWARDED, 'for="203.0.113.5:_port"')], "203.0.113.5"),
        ("127.0.0.1", [(FORWARDED, "for=1.1.1.1, for=203.0.113.5, for=10.0.0.1")], "203.0.113.5"),
        ("127.0.0.1", [(FORWARDED, "for=1.1.1.1"), (FORWARDED, "for=203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(FORWARDED, 'for="a,for=1.1.1.1", for=203.0.113.5')], "203.0.113.5"),
        ("127.0.0.1", [(FORWARDED, 'x="\\",for=1.1.1.1;y=", for=203.0.113.5')], "203.0.113.5"),
        ("127.0.0.1", [(FORWARDED, 'for="unclosed, for=203.0.113.5')], "127.0.0.1"),
        ("127.0.0.1", [(FORWARDED, "for=unknown")], "127.0.0.1"),
        ("127.0.0.1", [(FORWARDED, "for=1.1.1.1, for=_hidden, for=10.0.0.9")], "10.0.0.9"),
        ("127.0.0.1", [(FORWARDED, "for=1.1.1.1;for=203.0.113.5")], "127.0.0.1"),
        ("127.0.0.1", [(FORWARDED, "proto=https")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "203.0.113.5"), (FORWARDED, "for=203.0.113.5")], "203.0.113.5"),
        ("127.0.0.1", [(XFF, "203.0.113.5"), (FORWARDED, "for=1.1.1.1")], "127.0.0.1"),
        ("127.0.0.1", [(XFF, "203.0.113.5"), (FORWARDED, "for=unknown")], "127.0.0.1"),
        (None, [(XFF, "203.0.113.5")], None),
        ("", [(XFF, "203.0.113.5")], ""),
    ],
)
def test_t71_the_client_is_the_rightmost_address_that_is_not_trusted(
    peer: str | None, sent: list[tuple[str, str]], expected: str | None
) -> None:
    assert TRUSTED.client(peer, headers(*sent)) == expected


@pytest.mark.parametrize("name", [XFF, FORWARDED])
def test_t71_without_trusted_proxies_nobody_is_believed(name: str) -> None:
    for peer in ("127.0.0.1", "::1", "10.0.0.1", None):
        sent = headers((name, "for=203.0.113.5" if name == FORWARDED else "203.0.113.5"))
        assert TrustedProxies([]).client(peer, sent) == peer


@pytest.mark.parametrize(
    "name_and_hop", [(XFF, "10.0.0.1"), (FORWARDED, "for=10.0.0.1")], ids=["xff", "forwarded"]
)
def test_what_is_read_is_bounded(name_and_hop: tuple[str, str]) -> None:
    name, hop = name_and_hop
    client = hop.replace("10.0.0.1", "203.0.113.5")
    near = ", ".join([client, *[hop] * (forwarded.MAX_HOPS - 1)])
    assert TRUSTED.client("127.0.0.1", headers((name, near))) == "203.0.113.5"
    far = ", ".join([client, *[hop] * forwarded.MAX_HOPS])
    assert TRUSTED.client("127.0.0.1", headers((name, far))) == "10.0.0.1"
    for text in ("," * 8000, '"' * 8000, " " * 8000, "[" * 8000, "\\" * 8000, ":" * 8000):
        assert TRUSTED.client("127.0.0.1", headers((name, text + client))) == "127.0.0.1"


@given(
    st.lists(
        st.tuples(
            st.sampled_from([XFF, FORWARDED]), st.text('0123456789.:,;="\\[] fo_%', max_size=80)
        )
    )
)
def test_nothing_that_a_client_sends_is_an_error(pairs: list[tuple[str, str]]) -> None:
    found = TRUSTED.client("127.0.0.1", headers(*pairs))
    assert found is not None
    assert len(found) <= 45


def clients(proxy: Proxy) -> list[Any]:
    lines = map(json.loads, proxy.log.getvalue().splitlines())
    return [line.get("client") for line in lines if line["event"] == "request"]


@pytest.mark.parametrize(
    ("trusted", "expected"), [(["127.0.0.0/8"], "203.0.113.5"), ([], "127.0.0.1")]
)
async def test_t71_the_request_log_names_the_client(
    start: Start, upstream: FakeUpstream, trusted: list[str], expected: str
) -> None:
    proxy = await start(access={"trusted_proxies": trusted})
    upstream.add("library/app", IMAGE)
    sent = {"X_Forwarded_For": "1.1.1.1, 203.0.113.5"}
    for _ in range(3):
        assert (await proxy.get(LATEST, **sent)).status == 200
    assert b"millpond_prepared_answers_total 1.0" in (await proxy.get("/metrics")).body
    await proxy.get("/v2/app/manifests/none", **sent)
    await until(lambda: len(clients(proxy)) == 4)
    assert clients(proxy) == [expected] * 4


@pytest.mark.parametrize("order", [("127.0.0.1", "127.0.0.2"), ("127.0.0.2", "127.0.0.1")])
async def test_t71_the_same_bytes_from_somebody_else_are_not_believed(
    start: Start, upstream: FakeUpstream, order: tuple[str, str]
) -> None:
    proxy = await start(access={"trusted_proxies": ["127.0.0.1"]})
    upstream.add("library/app", IMAGE)
    await proxy.get(LATEST)
    host, port = proxy.app.address.split(":")
    request = f"GET {LATEST} HTTP/1.1\r\nHost: x\r\n{XFF}: 203.0.113.5\r\n\r\n".encode()
    for number, peer in enumerate(order * 2):
        reader, writer = await asyncio.open_connection(host, int(port), local_addr=(peer, 0))
        writer.write(request)
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        writer.transport.abort()
        await until(lambda seen=number + 2: len(clients(proxy)) == seen)  # type: ignore[misc]
    named = {"127.0.0.1": "203.0.113.5", "127.0.0.2": "127.0.0.2"}
    assert clients(proxy)[1:] == [named[peer] for peer in order * 2]
    assert b"millpond_prepared_answers_total 2.0" in (await proxy.get("/metrics")).body
