"""What modules above `content` can reach: its verbs and groups, and nothing below them."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from proxy.content import content as facade
from tests.fakes.clock import Clock
from tests.held import Held, opened

GROUPS = {"graph", "links", "referrers", "tags"}


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


def public(thing: object) -> set[str]:
    return {name for name in vars(thing) if not name.startswith("_")}


def test_content_gives_out_its_groups_and_none_of_its_parts(cache: Held) -> None:
    """Ruff refuses private attributes (SLF001), so what is not public cannot be reached."""
    assert public(cache.content) == GROUPS
    for group in GROUPS:
        assert public(getattr(cache.content, group)) == set(), group


def test_no_verb_gives_out_a_part() -> None:
    parts = {"BlobStore", "Index", "Evictor", "CacheCounters", "Removal", "Reconciler"}
    for name, verb in vars(facade.Content).items():
        returned = str(getattr(verb, "__annotations__", {}).get("return", ""))
        assert not any(part in returned for part in parts), name
