"""Hostile registries, hostile clients and faults do not harm other clients.

The scenarios and their limits are in this directory; `make attack` prints what they measure.
"""

import pytest

from tests.attack.arena import run
from tests.attack.every import ALL


@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", ALL)
async def test_an_attack_hurts_nobody_else(name: str) -> None:
    row = await run(ALL[name])
    assert not row.faults, row
