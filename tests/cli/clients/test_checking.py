"""The conclusions of a check from a client's pull; real clients are in ``tests/clients/``."""

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp import UnixConnector
from yarl import URL

from proxy.cli.client import Client, connected
from proxy.cli.clients import checking
from proxy.cli.clients.checking import Programs, Verdict
from proxy.core.errors import ConfigError
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, until

APP = "docker.io/library/app:1.0"
PATH = "/v2/library/app/manifests/1.0"
NOTHING, FAILING = Programs(("true",)), Programs(("sh", "-c", "echo no such image >&2; exit 1"))


@pytest.fixture(autouse=True)
def image(upstream: FakeUpstream, monkeypatch: pytest.MonkeyPatch) -> None:
    upstream.add("library/app", content.image(1), tags=["1.0"])
    monkeypatch.setattr(checking, "QUIET_SECONDS", 0.1)
    monkeypatch.setattr(checking, "SETTLE_SECONDS", 0.4)


@pytest.fixture
async def server(proxy: Proxy) -> AsyncIterator[Client]:
    """The operator's client, on the admin socket."""
    socket = UnixConnector(str(proxy.storage / "admin.sock"))
    async with connected(socket, URL("http://millpond"), "here") as client:
        yield client


@pytest.fixture
async def anybody(proxy: Proxy) -> AsyncIterator[Client]:
    url = f"http://{proxy.app.address}"
    async with connected(None, URL(url), url) as client:
        yield client


def pulling(proxy: Proxy) -> Programs:
    """A program that asks Millpond for the image."""
    url = f"http://{proxy.app.address}{PATH}"
    code = f"from urllib.request import urlopen; urlopen({url!r}).read()"
    return Programs((sys.executable, "-c", code))


@asynccontextmanager
async def others(proxy: Proxy) -> AsyncIterator[None]:
    """Clients pull all the time."""

    async def pull() -> None:
        while True:
            assert (await proxy.get(PATH, User_Agent="skopeo/1.9 linux")).status == 200
            await asyncio.sleep(0.01)

    task = asyncio.create_task(pull())
    await until(lambda: proxy.numbers["hits"] > 0)
    yield
    task.cancel()


async def test_a_pull_that_moves_the_counters_was_through_millpond(
    proxy: Proxy, anybody: Client
) -> None:
    finding = await checking.check(anybody, pulling(proxy), APP)
    assert finding.verdict is Verdict.USED
    assert "Millpond: 1 request" in finding.text


async def test_a_pull_without_a_request_is_a_bypass(server: Client) -> None:
    finding = await checking.check(server, NOTHING, APP)
    assert finding.verdict is Verdict.BYPASSED


async def test_a_client_that_fails_is_quoted(server: Client) -> None:
    finding = await checking.check(server, FAILING, APP)
    assert finding.verdict is Verdict.FAILED
    assert "no such image" in finding.text
    assert "0 requests" in finding.text


async def test_pulls_of_others_are_not_taken_for_ours(
    proxy: Proxy, anybody: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "QUIET_SECONDS", 0.5)  # long enough for one pull, if it is slow
    async with others(proxy):
        finding = await checking.check(anybody, NOTHING, APP)
    assert finding.verdict is Verdict.UNKNOWN
    assert "--token-file" in finding.text


async def test_an_operator_sees_the_pull_among_those_of_others(
    proxy: Proxy, server: Client
) -> None:
    async with others(proxy):
        finding = await checking.check(server, NOTHING, APP)
    assert finding.verdict is Verdict.USED
    assert "skopeo/1.9 at 127.0.0.1" in finding.text


async def test_a_registry_that_millpond_does_not_have_is_named(server: Client) -> None:
    with pytest.raises(ConfigError, match=r"nope\.example; there are"):
        await checking.check(server, NOTHING, "nope.example/app:1")
