"""What all in-process tests share: the production event loop, a fake upstream, a running proxy."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from hypothesis import HealthCheck, settings

from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.limits import (
    pytest_configure,
    pytest_runtest_teardown,
    pytest_sessionfinish,
    pytest_timeout_cancel_timer,
    pytest_timeout_set_timer,
    pytest_unconfigure,
)
from tests.parts.millpond import WORKERS
from tests.parts.process import NO_AUTHORITIES
from tests.running import Proxy, Start, started

if TYPE_CHECKING:
    from tests.parts.seaweed import Server, TestBucket

__all__ = (
    "pytest_configure",
    "pytest_runtest_teardown",
    "pytest_sessionfinish",
    "pytest_timeout_cancel_timer",
    "pytest_timeout_set_timer",
    "pytest_unconfigure",
)

PROGRAMS = frozenset({"attack", "clients", "crash"})

# The same examples in each run, and no limit of time for one: other processes load the machine.
settings.register_profile(
    "millpond",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("millpond")

# No test needs the authorities of the system, and to load them takes 30 ms of each proxy.
os.environ |= NO_AUTHORITIES


def pytest_asyncio_loop_factories(
    config: pytest.Config, item: pytest.Item
) -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep the tests that drive whole programs together: one worker runs them, one at a time.

    They share daemons, or measure a program's memory and stalls. So are those that share an S3
    server or a browser. With Millpond's own workers, tests of a single process are skipped.
    """
    for item in items:
        if WORKERS > 1 and item.get_closest_marker("one_process"):
            item.add_marker(pytest.mark.skip("it looks into the process that answers"))
        if item.path.parent.name in PROGRAMS:
            item.add_marker(pytest.mark.xdist_group("programs"))
        elif "object_storage" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("bucket"))
        elif "browser" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group("browser"))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(scope="session")
def object_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """One S3 server for all tests of a process: it takes seconds to start."""
    from tests.parts import seaweed  # noqa: PLC0415 - obstore

    with (
        pytest.MonkeyPatch.context() as patch,
        seaweed.running(tmp_path_factory.mktemp("seaweed")) as server,
    ):
        for name in NO_AUTHORITIES:  # obstore opens no bucket without authorities
            patch.delenv(name, raising=False)
        yield server


@pytest.fixture
def bucket(object_storage: "Server") -> "TestBucket":
    return object_storage.bucket()


@pytest.fixture
async def upstream() -> AsyncIterator[FakeUpstream]:
    async with FakeUpstream() as fake:
        yield fake


@pytest.fixture
async def start(upstream: FakeUpstream, clock: Clock, tmp_path: Path) -> AsyncIterator[Start]:
    """Start proxies over the fake upstream; each call may change settings."""
    async with AsyncExitStack() as stack:

        async def start(**settings: Any) -> Proxy:
            storage = tmp_path / "cache"
            return await stack.enter_async_context(started(upstream, storage, clock, settings))

        yield start


@pytest.fixture
async def proxy(start: Start) -> Proxy:
    return await start()
