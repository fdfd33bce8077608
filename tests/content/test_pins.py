"""Pinned content stays, is reported, and never exceeds its budget."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.content import pins as module
from proxy.content.pins import Pins
from proxy.core.errors import (
    ConfigError,
    Conflict,
    DigestInvalid,
    NameInvalid,
    NameUnknown,
    PinUnknown,
    RegistryError,
    StorageError,
    TagInvalid,
)
from proxy.core.names import Digest
from proxy.core.records import BLOCK
from tests.fakes import content
from tests.fakes.clock import Clock
from tests.fakes.upstream import FakeUpstream
from tests.held import LIMIT, Held, named, nothing_elsewhere, opened
from tests.running import Start, until

ONE, TWO, THREE = (content.image(seed) for seed in (1, 2, 3))
WEIGHT = 4 * BLOCK
"""What each of them takes: a manifest, its config and two layers."""

HEX = "0123456789abcdef" * 4


@pytest.fixture
async def cache(tmp_path: Path, clock: Clock) -> AsyncIterator[Held]:
    async with opened(tmp_path, clock) as held:
        await held.image("app:1", ONE)
        await held.image("app:2", TWO)
        await held.image("ghcr.io/team/tool:v3", THREE)
        yield held


def tree(*images: content.Content) -> set[str]:
    return {digest for image in images for digest in (*image.manifests, *image.blobs)}


async def loaded(cache: Held, *configured: str, limit: int = LIMIT) -> Pins:
    pins = cache.pins(*configured, limit=limit)
    await pins.load(nothing_elsewhere)
    return pins


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("app", "docker.io/library/app:latest"),
        ("app:1", "docker.io/library/app:1"),
        ("team/app:1", "docker.io/team/app:1"),
        ("docker.io/app:1", "docker.io/library/app:1"),
        ("index.docker.io/library/app:1", "docker.io/library/app:1"),
        ("ghcr.io/team/tool", "ghcr.io/team/tool:latest"),
        ("lab:5000/x:1", "lab:5000/x:1"),
        (f"app@sha256:{HEX}", f"docker.io/library/app@sha256:{HEX}"),
        (f"app:1@sha256:{HEX}", f"docker.io/library/app@sha256:{HEX}"),
        (f"sha256:{HEX}", f"sha256:{HEX}"),
    ],
)
async def test_a_pin_is_called_by_the_full_name_of_its_image(
    cache: Held, written: str, meant: str
) -> None:
    pins = await loaded(cache)
    assert (await pins.add(written)).name == meant
    assert pins.added() == [meant]
    await pins.remove(meant)
    assert pins.added() == []


@pytest.mark.parametrize(
    ("written", "error"),
    [
        ("", NameInvalid),
        ("App:1", NameInvalid),
        ("app:", TagInvalid),
        ("app:a+b", TagInvalid),
        ("app@sha256:123", DigestInvalid),
        ("example.com/app:1", NameUnknown),
    ],
)
async def test_what_is_no_image_is_refused(
    cache: Held, written: str, error: type[RegistryError]
) -> None:
    pins = await loaded(cache)
    with pytest.raises(error):
        await pins.add(written)
    assert pins.added() == []


@pytest.mark.parametrize("configured", ["App:1", "example.com/app:1"])
async def test_a_configured_pin_that_is_no_image_is_refused(cache: Held, configured: str) -> None:
    with pytest.raises(RegistryError):
        cache.pins(configured)


async def test_a_pinned_image_is_spared_with_all_of_it_and_survives_eviction(cache: Held) -> None:
    index = content.multi_platform(9)
    await cache.image("app:index", index)
    pins = await loaded(cache, "app:index")
    await pins.add("app:1")
    assert await pins.protected() == tree(ONE, index)
    cache.protected = set(await pins.protected())
    await cache.evictor.evict(LIMIT)
    assert await cache.on_disk() == tree(ONE, index)


async def test_of_an_image_that_is_held_in_part_that_part_stays(cache: Held) -> None:
    gone = Digest(ONE.layers[0])
    await cache.index.drop_blobs([gone])
    pins = await loaded(cache, "app:1")
    assert await pins.protected() == tree(ONE), "what comes back stays too"
    [pin] = await pins.all()
    assert (pin.images, pin.bytes) == (1, WEIGHT - BLOCK)


@pytest.mark.parametrize(
    ("pattern", "matched"),
    [
        ("*:1", [ONE]),
        ("docker.io/library/*", [ONE, TWO]),
        ("docker.io/library/app:[12]", [ONE, TWO]),
        ("*/tool:v?", [THREE]),
        ("*", [ONE, TWO, THREE]),
        ("nothing*", []),
    ],
)
async def test_a_pattern_pins_what_it_matches(
    cache: Held, pattern: str, matched: list[content.Image]
) -> None:
    pins = await loaded(cache, pattern)
    assert await pins.protected() == tree(*matched)
    [pin] = await pins.all()
    assert (pin.name, pin.is_configured, pin.images) == (pattern, True, len(matched))
    assert pin.bytes == pins.bytes == WEIGHT * len(matched)


async def test_a_pattern_that_is_added_pins_what_comes_later_and_survives_a_restart(
    tmp_path: Path, clock: Clock
) -> None:
    async with opened(tmp_path, clock) as cache:
        await cache.image("app:1", ONE)
        pins = await loaded(cache)
        pin = await pins.add("docker.io/app:*")
        assert (pin.name, pin.images) == ("docker.io/library/app:*", 1)
    async with opened(tmp_path, clock) as cache:
        pins = await loaded(cache)
        assert pins.added() == ["docker.io/library/app:*"]
        await cache.image("app:2", TWO)
        await cache.image("team/app:3", THREE)
        assert await pins.pinned() == tree(ONE, TWO), "an asterisk matches no slash"
        assert pins.pinning(*named("app:2"), Digest(TWO.digest)) == ["docker.io/library/app:*"]
        assert pins.pinning(*named("team/app:3"), Digest(THREE.digest)) == []
        await pins.add("app:2")
        await pins.add("team/app:3")
        assert await pins.remove("app:*") == ["docker.io/library/app:*", "docker.io/library/app:2"]
        assert pins.added() == ["docker.io/team/app:3"]
        with pytest.raises(PinUnknown):
            await pins.remove("app:*")


async def test_pins_come_back_after_a_restart(tmp_path: Path, clock: Clock) -> None:
    async with opened(tmp_path, clock) as cache:
        await cache.image("app:1", ONE)
        pins = await loaded(cache, "ghcr.io/team/tool:v3")
        await pins.add("app:1")
        await pins.add("app:2")
        await pins.remove("app:2")
    async with opened(tmp_path, clock) as cache:
        pins = await loaded(cache)
        assert [pin.name for pin in await pins.all()] == ["docker.io/library/app:1"]
        assert await pins.protected() == tree(ONE)


async def test_all_pins_that_are_added_at_once_come_back(tmp_path: Path, clock: Clock) -> None:
    names = [f"docker.io/library/app:{number}" for number in range(20)]
    async with opened(tmp_path, clock) as cache:
        pins = await loaded(cache)
        await asyncio.gather(*map(pins.add, [*names, *names]))
        assert sorted(pins.added()) == sorted(names)
        await asyncio.gather(*map(pins.remove, names[:5]), *map(pins.add, ["b", "c"]))
    async with opened(tmp_path, clock) as cache:
        pins = await loaded(cache)
        kept = [*names[5:], "docker.io/library/b:latest", "docker.io/library/c:latest"]
        assert sorted(pins.added()) == sorted(kept)


async def test_what_the_index_has_lost_is_taken_from_elsewhere_and_noted(
    tmp_path: Path, clock: Clock
) -> None:
    async def elsewhere() -> list[str]:
        return ["docker.io/library/app:1", "example.com/gone:1"]

    async with opened(tmp_path, clock) as cache:
        pins = cache.pins()
        await pins.load(elsewhere)
        assert pins.added() == ["docker.io/library/app:1", "example.com/gone:1"]
        again = await loaded(cache)
        assert again.added() == ["docker.io/library/app:1", "example.com/gone:1"]
        await again.remove("app:1")
        await again.remove("example.com/gone:1")
        last = cache.pins()
        await last.load(elsewhere)
        assert last.added() == [], "no pin is no lost pin"


async def test_a_pin_over_the_budget_is_refused_with_its_size(cache: Held) -> None:
    pins = await loaded(cache, limit=2 * WEIGHT - 1)
    await pins.add("app:1")
    with pytest.raises(Conflict) as refused:
        await pins.add("app:2")
    told = refused.value.message
    assert told == (
        f"docker.io/library/app:2 needs {WEIGHT} bytes; {WEIGHT} are pinned, "
        f"and {2 * WEIGHT - 1} may be"
    )
    assert pins.added() == ["docker.io/library/app:1"]
    await pins.add("app:1")  # again is fine
    assert await pins.protected() == tree(ONE)


async def test_what_is_still_missing_counts_before_a_pin_is_taken(cache: Held) -> None:
    big = content.image(7, layers=(50 * BLOCK,))
    await cache.image("app:big", big, but=(big.layers[0],))
    pins = await loaded(cache, limit=40 * BLOCK)
    with pytest.raises(Conflict, match=f"needs {52 * BLOCK} bytes"):
        await pins.add("app:big")


async def test_what_two_pins_share_counts_once(cache: Held) -> None:
    other = content.Image(manifest=ONE.manifest + b"\n", media_type=ONE.media_type, blobs=ONE.blobs)
    await cache.image("app:other", other)
    pins = await loaded(cache, limit=WEIGHT + BLOCK)
    await pins.add("app:1")
    assert (await pins.add("app:other")).bytes == BLOCK
    assert pins.bytes == WEIGHT + BLOCK


async def test_configured_pins_beyond_the_budget_are_told_and_the_first_are_honoured(
    cache: Held,
) -> None:
    pins = await loaded(cache, "app:1", "app:2", "ghcr.io/team/*", limit=WEIGHT + 1)
    first, second, third = await pins.all()
    assert (first.refused, first.images, first.bytes) == (None, 1, WEIGHT)
    for pin in (second, third):
        assert pin.refused == f"{WEIGHT} bytes more would exceed the {WEIGHT + 1} for pins"
        assert (pin.images, pin.bytes) == (0, 0)
    assert await pins.protected() == tree(ONE)


async def test_a_pin_by_tag_follows_the_tag_and_one_by_digest_does_not(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "STALE_SECONDS", -1.0)
    pins = await loaded(cache)
    await pins.add("app:1")
    assert await pins.protected() == tree(ONE)
    await cache.image("app:1", TWO)
    assert await pins.protected() == tree(TWO)
    await pins.add(f"app@{ONE.digest}")
    await pins.add(THREE.digest)
    assert await pins.protected() == tree(ONE, TWO, THREE)
    await cache.image("ghcr.io/team/tool:v3", ONE)
    assert await pins.protected() == tree(ONE, TWO, THREE)


async def test_what_is_unpinned_goes_like_anything_else(cache: Held) -> None:
    pins = await loaded(cache, "app:2")
    await pins.add("app:1")
    assert await pins.protected() == tree(ONE, TWO)
    await pins.remove("docker.io/library/app:1")
    assert await pins.protected() == tree(TWO)
    with pytest.raises(PinUnknown):
        await pins.remove("app:1")
    with pytest.raises(Conflict, match="pinned by the configuration"):
        await pins.remove("app:2")
    await pins.add("app:2")
    assert pins.added() == [], "what is configured is not added as well"


async def test_a_pin_that_cannot_be_noted_is_not_acknowledged(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(name: str, value: object) -> None:
        raise StorageError("No space left on device")

    pins = await loaded(cache)
    await pins.add("app:1")
    monkeypatch.setattr(cache.index, "set_note", fails)
    with pytest.raises(StorageError):
        await pins.add("app:2")
    with pytest.raises(StorageError):
        await pins.remove("app:1")
    assert pins.added() == ["docker.io/library/app:1"]


async def test_c06_a_pinned_image_stays_while_all_else_goes(
    start: Start, upstream: FakeUpstream
) -> None:
    """Through the running proxy, and over a restart."""
    upstream.add("library/app", ONE)
    proxy = await start(storage={"max_size": "256KiB"}, pins=["app:latest"])
    paths = ["manifests/latest", *(f"blobs/{digest}" for digest in ONE.blobs)]
    for path in paths:
        assert (await proxy.get(f"/v2/app/{path}")).status == 200
    for turn in range(2):
        for number in range(30):
            filler = upstream.add_blob("library/app", content.blob(20_000, seed=f"{turn} {number}"))
            assert (await proxy.get(f"/v2/app/blobs/{filler}")).status == 200
            await proxy.settled()
        assert proxy.stats["cache"]["evictions"] > 10
        upstream.clear()
        for path in paths:
            assert (await proxy.get(f"/v2/app/{path}")).status == 200
        assert not upstream.requests
        if not turn:
            await proxy.close()
            proxy = await start(storage={"max_size": "256KiB"}, pins=["*/app:*"])


async def test_a_configured_pin_that_is_not_honoured_is_logged_once(cache: Held) -> None:
    pins = await loaded(cache, "app:1", "app:2", limit=WEIGHT + 1)
    with capture_logs() as logs:
        for _ in range(3):
            await pins.all()
    [line] = logs
    assert (line["log_level"], line["pin"]) == ("warning", "docker.io/library/app:2")
    assert line["reason"] == f"{WEIGHT} bytes more would exceed the {WEIGHT + 1} for pins"


async def test_what_has_come_is_spared_once_looking_again_costs_little(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = await loaded(cache, "*/new:*")
    monkeypatch.setattr(module, "_PAUSE_FACTOR", 1e9)
    assert await pins.protected() == set()
    await cache.image("new:1", ONE)
    assert await pins.protected() == set(), "after a long look, not at once"
    monkeypatch.setattr(module, "_PAUSE_FACTOR", 0.0)
    pins = await loaded(cache, "*/new:*")
    assert await pins.protected() == tree(ONE)
    await cache.image("new:2", TWO)
    assert await pins.protected() == tree(ONE, TWO)


async def test_a_pin_that_cannot_be_read_keeps_the_proxy_from_starting(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"pins: .*example\.com"):
        await start(pins=["example.com/app:1"])


async def test_t63_a_pin_that_cannot_be_read_is_not_lost_at_the_next_add(cache: Held) -> None:
    noted = ["docker.io/library/app:1", "gone.example/app:1"]
    await cache.index.set_note("pins", noted)
    pins = await loaded(cache)
    assert pins.added() == noted
    await pins.add("app:2")
    await pins.remove("app:1")
    left = ["docker.io/library/app:2", "gone.example/app:1"]
    assert await cache.index.note("pins") == left
    assert (await loaded(cache)).added() == left
    await pins.remove("gone.example/app:1")
    assert await cache.index.note("pins") == pins.added() == ["docker.io/library/app:2"]


async def test_a_star_of_a_configured_pattern_also_stands_for_slashes(cache: Held) -> None:
    pins = cache.pins("ghcr.io/team*:1")
    assert pins.pinning(*named("ghcr.io/team/deep/app:1"), Digest(ONE.digest)) == [
        "ghcr.io/team*:1"
    ]
    assert pins.pinning(*named("ghcr.io/team/deep/app:2"), Digest(ONE.digest)) == []
    added = await loaded(cache)
    await added.add("ghcr.io/team*:1")
    assert added.pinning(*named("ghcr.io/team/deep/app:1"), Digest(ONE.digest)) == []


async def test_t63_pins_that_the_disk_did_not_give_are_not_lost_at_the_next_add(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    await cache.index.set_note("pins", ["docker.io/library/app:1"])
    read, failures = cache.index.note, [StorageError("broken")] * 2

    async def failing(name: str) -> object:
        if failures:
            raise failures.pop()
        return await read(name)

    monkeypatch.setattr(cache.index, "note", failing)
    pins = await loaded(cache)
    assert pins.added() == []
    with pytest.raises(StorageError):
        await pins.add("app:2")
    await pins.add("app:2")
    both = ["docker.io/library/app:1", "docker.io/library/app:2"]
    assert pins.added() == both
    assert await read("pins") == both


class HeldBack:
    """Holds the first call of a method back until it may go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, owner: object, name: str) -> None:
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.calls = 0
        self._call = getattr(owner, name)
        monkeypatch.setattr(owner, name, self)

    async def __call__(self, *args: Any) -> Any:
        self.calls += 1
        found = await self._call(*args)
        if not self.reached.is_set():
            self.reached.set()
            await self.go_on.wait()
        return found


async def test_a_pin_added_while_the_protected_content_is_computed_is_honoured(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = await loaded(cache, "app:1")
    slow = HeldBack(monkeypatch, cache.index, "trees")
    computing = asyncio.create_task(pins.protected())
    await slow.reached.wait()
    await pins.add("app:2")
    slow.go_on.set()
    assert await computing == tree(ONE, TWO)


async def test_the_protected_content_is_computed_once_for_all_who_ask_meanwhile(
    cache: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    pins = await loaded(cache, "app:1")
    slow = HeldBack(monkeypatch, pins, "pinned")
    first, second = (asyncio.create_task(pins.protected()) for _ in range(2))
    await slow.reached.wait()
    slow.go_on.set()
    assert await first == await second == tree(ONE)
    assert slow.calls == 1


async def test_another_answer_is_protected_without_a_change_of_the_index(cache: Held) -> None:
    """A tag that is held is released as time goes by."""
    pins, answer = await loaded(cache, "app:1"), TWO

    async def answers(*_: object) -> list[Digest]:
        return [Digest(answer.digest)]

    pins.answers = answers
    assert await pins.protected() == tree(TWO)
    answer = ONE
    await until(lambda: pins._computed is not None and time.monotonic() > pins._computed[2])
    assert await pins.protected() == tree(ONE)
