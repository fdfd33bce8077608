"""What modules above `content` can use: its verbs and parts, and nothing below them."""

import re
from collections.abc import AsyncIterator, Callable
from inspect import ismethod
from pathlib import Path

import pytest

from proxy.runtime.metrics import CacheCounters
from tests.fakes.clock import Clock
from tests.held import Held, opened

PARTS = {"evictor", "faults", "graph", "links", "reconciler", "tags"}


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        yield held


def public(thing: object) -> dict[str, object]:
    return {name: value for name, value in vars(thing).items() if not name.startswith("_")}


def verbs(thing: object) -> dict[str, Callable[..., object]]:
    names = {*public(thing), *(name for name in dir(type(thing)) if not name.startswith("_"))}
    return {name: verb for name in names if callable(verb := getattr(thing, name))}


def test_content_gives_out_its_parts_and_nothing_below_them(cache: Held) -> None:
    """Ruff refuses private attributes (SLF001), so what is not public cannot be reached."""
    found = {name for name, value in public(cache.content).items() if not ismethod(value)}
    assert found == PARTS | {"clock", "on_stored", "on_cached"}
    below = (type(cache.store), type(cache.index), CacheCounters)
    for part in PARTS:
        values = public(getattr(cache.content, part)).values()
        assert not any(isinstance(value, below) for value in values), part


def test_no_verb_gives_out_what_is_below(cache: Held) -> None:
    below = {"DiskStore", "Index", "CacheCounters"}
    for thing in (cache.content, *(getattr(cache.content, part) for part in PARTS)):
        for name, verb in verbs(thing).items():
            returned = re.findall(r"\w+", str(verb.__annotations__.get("return", "")))
            assert below.isdisjoint(returned), name
