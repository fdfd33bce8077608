"""Each index in turn, for what every index must do."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.fakes.clock import Clock
from tests.index.indexes import FILES, Files


@pytest.fixture(params=FILES)
async def files(
    request: pytest.FixtureRequest, tmp_path: Path, clock: Clock
) -> AsyncIterator[Files]:
    found = FILES[request.param](tmp_path / "index", clock)
    yield found
    await found.close()
