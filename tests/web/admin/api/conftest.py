"""A proxy, its operator on the admin socket, and anybody over TCP."""

from collections.abc import AsyncIterator

import pytest

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy, Start
from tests.web.admin.api.client import ApiClient, described, on_socket


@pytest.fixture
async def proxy(start: Start, upstream: FakeUpstream) -> Proxy:
    upstream.add("library/app", content.image(1))
    upstream.add("library/tool", content.image(2))
    return await start()


@pytest.fixture
async def api(proxy: Proxy) -> AsyncIterator[ApiClient]:
    async with on_socket(proxy) as client:
        yield client


@pytest.fixture
async def anybody(proxy: Proxy) -> ApiClient:
    return await described(proxy.client)
