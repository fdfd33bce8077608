from collections.abc import AsyncIterator

import aiohttp
import pytest

from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.pulling import BLOB, NAME
from tests.fakes.upstream import FakeUpstream


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def upstream(clock: Clock) -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream(clock) as running:
        running.add(NAME, content.multi_platform(), tags=["latest", "3.20"])
        running.add_blob(NAME, BLOB)
        yield running


@pytest.fixture
async def session(upstream: FakeUpstream) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(upstream.url, auto_decompress=False) as opened:
        yield opened
