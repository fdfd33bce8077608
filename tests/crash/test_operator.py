"""The crash operator reports no false faults: it compares pins while others change them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestServer

from tests.crash.operator import Operator

WARE: Any = SimpleNamespace(pin="docker.io/library/app:1", digests=frozenset())


class Admin:
    """A server that lists its pins as they were when it was asked, and answers late."""

    def __init__(self, *pins: str) -> None:
        self.pins = set(pins)
        self.is_asked = asyncio.Event()
        self.is_changed = asyncio.Event()
        self.may_answer = asyncio.Event()
        app = web.Application()
        app.router.add_get("/-/pins", self._list)
        app.router.add_put("/-/pins", self._change)
        app.router.add_delete("/-/pins", self._change)
        self.server = TestServer(app)

    @asynccontextmanager
    async def operator(self) -> AsyncIterator[ClientSession]:
        """Open a client, as a victim does."""
        async with ClientSession(f"http://127.0.0.1:{self.server.port}") as client:
            yield client

    async def _list(self, _: web.Request) -> web.Response:
        document = {"pins": [{"pin": pin} for pin in self.pins]}
        self.is_asked.set()
        await self.may_answer.wait()
        return web.json_response(document)

    async def _change(self, request: web.Request) -> web.Response:
        change = self.pins.add if request.method == "PUT" else self.pins.discard
        change(request.query["pin"])
        self.is_changed.set()
        return web.json_response({})


class Crowd:
    """Clients whose pulls all fail."""

    async def pull(self, _: Any) -> bool:
        return False


@pytest.mark.parametrize("is_pinned", [False, True])
async def test_a_pin_that_changes_while_pins_are_compared_is_not_blamed(is_pinned: bool) -> None:
    admin = Admin(*([WARE.pin] if is_pinned else []))
    victim: Any = admin
    crowd: Any = Crowd()
    world: Any = SimpleNamespace(wares=[])
    async with admin.server:
        operator = Operator(victim, world, crowd)
        operator.pinned[WARE.pin] = is_pinned
        victim.loses_power = False
        comparing = asyncio.create_task(operator.settle())
        await admin.is_asked.wait()
        change = operator._unpin(WARE) if is_pinned else operator._pin(WARE)
        changing = asyncio.create_task(change)
        await asyncio.wait([asyncio.create_task(admin.is_changed.wait())], timeout=0.3)
        admin.may_answer.set()
        assert await comparing is None
        await changing
        assert operator.pinned[WARE.pin] is not is_pinned
        admin.is_asked.clear()
        assert await operator.settle() is None


async def test_a_pin_that_is_gone_is_blamed() -> None:
    admin = Admin()
    victim: Any = admin
    world: Any = SimpleNamespace(wares=[])
    crowd: Any = Crowd()
    async with admin.server:
        operator = Operator(victim, world, crowd)
        operator.pinned[WARE.pin] = True
        admin.may_answer.set()
        assert "is gone" in str(await operator.settle())
        operator.pinned[WARE.pin] = False
        admin.pins.add(WARE.pin)
        assert "is back" in str(await operator.settle())
