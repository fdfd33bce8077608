"""What modules above `content` can reach: its verbs and groups, and nothing below them."""

import re
from collections.abc import AsyncIterator, Callable
from inspect import ismethod
from pathlib import Path

import pytest

from tests.fakes.clock import Clock
from tests.held import Held, opened

GROUPS = {"graph", "links", "referrers", "tags"}


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


def public(thing: object) -> dict[str, object]:
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


def verbs(thing: object) -> dict[str, Callable[..., object]]:
    names = {*public(thing), *(name for name in dir(type(thing)) if not name.startswith("_"))}
    return {name: verb for name in names if callable(verb := getattr(thing, name))}


def test_content_gives_out_its_groups_and_none_of_its_parts(cache: Held) -> None:
    """Ruff refuses private attributes (SLF001), so what is not public cannot be reached."""
    found = {name for name, value in public(cache.content).items() if not ismethod(value)}
    assert found == GROUPS | {"clock"}
    for group in GROUPS:
        assert all(map(ismethod, public(getattr(cache.content, group)).values())), group


def test_no_verb_gives_out_a_part(cache: Held) -> None:
    parts = {"BlobStore", "Index", "Evictor", "CacheCounters", "Removal", "Reconciler"}
    for thing in (cache.content, *(getattr(cache.content, group) for group in GROUPS)):
        for name, verb in verbs(thing).items():
            returned = re.findall(r"\w+", str(verb.__annotations__.get("return", "")))
            assert parts.isdisjoint(returned), name
