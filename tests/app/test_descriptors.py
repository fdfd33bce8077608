"""How file descriptors are divided; ``tests/web/test_descriptors.py`` runs the program with few."""

import resource
import subprocess
import sys

import pytest

from proxy.app.descriptors import PER_CLIENT, PER_DOWNLOAD, RESERVED, descriptor_limits

PROGRAM = """
import resource
from proxy.app.descriptors import raise_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (128, 512))
print(raise_limit(), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize("limit", [256, 1024, 4096, 65536, 1_048_576])
@pytest.mark.parametrize("wanted", [1, 8, 64, 1000])
def test_all_together_stay_below_the_limit(limit: int, wanted: int) -> None:
    given = descriptor_limits(limit, wanted)
    taken = RESERVED + given.clients * PER_CLIENT + given.downloads * PER_DOWNLOAD
    assert limit - PER_CLIENT < taken <= limit
    assert given.downloads <= max(2, wanted)


def test_downloads_are_as_configured_where_there_are_enough() -> None:
    assert descriptor_limits(65536, 64).downloads == 64
    assert descriptor_limits(RESERVED + 160, 64).downloads == 160 // (2 * PER_DOWNLOAD)


@pytest.mark.parametrize("limit", [0, 20, RESERVED, RESERVED + 1])
def test_some_are_served_with_any_limit(limit: int) -> None:
    given = descriptor_limits(limit, 64)
    assert (given.clients, given.downloads) == (8, 2)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard >= 512
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.split() == ["512", "512", "512"]
