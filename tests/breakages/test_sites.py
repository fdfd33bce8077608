"""Breakages are small, compile, and exclude code that no test can see."""

from pathlib import Path

import pytest

from tests.breakages.sites import chosen, found

ROOT = Path(__file__).resolve().parents[2]
UNSEEN = b'''"""A docstring."""
from typing import TYPE_CHECKING, Protocol
if TYPE_CHECKING:
    import asyncio
class Seam(Protocol):
    def verb(self) -> int:
        return 1
class Thing:
    def __repr__(self) -> str:
        return "thing" if self.x > 1 else "none"
    def work(self) -> None:
        """Work."""
        log.info("worked", times=3)
        assert self.x > 1
'''


def broken(source: str) -> dict[str, set[str]]:
    """Return what each kind of breakage makes of a text."""
    made: dict[str, set[str]] = {}
    for site in found("a.py", source.encode()):
        made.setdefault(site.kind, set()).add(site.broken(source.encode()).decode())
    return made


@pytest.mark.parametrize(
    ("source", "kind", "after"),
    [
        ("if a: b()", "negated condition", "if not (a): b()"),
        ("x = a < b", "comparison", "x = a <= b"),
        ("x = (a + 1) >= (b)", "comparison", "x = (a + 1) > (b)"),
        ("x = a is not b", "comparison", "x = a is b"),
        ("x = a and b", "and, or", "x = a or b"),
        ("x = a - b", "arithmetic", "x = a + b"),
        ("x = not a", "dropped not", "x = (a)"),
        ("x = 3", "constant", "x = 4"),
        ("x = 30", "constant", "x = 30000"),
        ("x = 0.5", "constant", "x = 501.0"),
        ("x = True", "constant", "x = False"),
        ("a.b = c", "dropped assignment", "pass"),
        ("a += c", "dropped assignment", "pass"),
        ("f()", "dropped call", "pass"),
        ("raise A", "dropped raise", "pass"),
        ("async def f():\n    await g()", "dropped await", "async def f():\n    pass"),
        ("def f():\n    return a", "returns nothing", "def f():\n    return None"),
        ("try: a\nexcept B: c", "dropped except", "try: a\nexcept B: raise"),
        ("while a: break", "break", "while a: continue"),
        ("é = 'é'; x = a < b", "comparison", "é = 'é'; x = a <= b"),
    ],
)
def test_each_kind(source: str, kind: str, after: str) -> None:
    assert after in broken(source)[kind]


def test_what_no_test_can_see_is_spared() -> None:
    assert not found("a.py", UNSEEN)


def test_a_choice_is_the_same_for_the_same_seed_and_spread_over_the_modules() -> None:
    picked = chosen(ROOT, 60, seed=1)
    assert picked == chosen(ROOT, 60, seed=1)
    assert picked != chosen(ROOT, 60, seed=2)
    assert len({site.path for site in picked}) >= 50
    assert len({site.kind for site in picked}) >= 6
    for site in picked:
        source = (ROOT / site.path).read_bytes()
        assert site.broken(source) != source
