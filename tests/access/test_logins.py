"""The cache of verified credentials: what it drops, and what it never stores."""

import time

import pytest

from proxy.access import logins
from proxy.access.logins import MAX_RECENT, Login, LoginCache
from proxy.access.principals import Method, Principal

PRESENTED = (b"key", "10.0.0.1", None)
ANN = Principal("10.0.0.1", "ann")


def login(seconds: float = 60) -> Login:
    return Login("ann", Method.TOKEN, time.time() + seconds)


def test_nothing_is_known_after_a_change() -> None:
    cache, key = LoginCache(), b"key"
    generation = cache.generation
    cache.put(key, login(), generation)
    cache.put_recent(PRESENTED, login(), ANN)
    assert (cache.get(key) is not None, cache.recent(PRESENTED)) == (True, ANN)
    cache.clear()
    assert (cache.get(key), cache.recent(PRESENTED)) == (None, None)
    cache.put(key, login(), generation)
    assert cache.get(key) is None, "it was verified before the change"
    cache.put(key, login(), cache.generation)
    assert cache.get(key) is not None


def test_logins_expire() -> None:
    cache, key = LoginCache(), b"key"
    cache.put(key, login(-1), cache.generation)
    cache.put_recent(PRESENTED, login(-1), ANN)
    assert (cache.get(key), cache.recent(PRESENTED)) == (None, None)


@pytest.mark.parametrize("other", [(b"key", "10.0.0.2", None), (b"x", None, None)])
def test_another_client_is_not_known(other: logins.Presented) -> None:
    cache = LoginCache()
    cache.put_recent(PRESENTED, login(), ANN)
    assert cache.recent(other) is None


def test_passwords_are_kept_as_keyed_hashes_only() -> None:
    one, other = LoginCache(), LoginCache()
    assert one.digest("ann\0secret") == one.digest("ann\0secret")
    assert one.digest("ann\0secret") != other.digest("ann\0secret")


def test_recent_logins_are_bounded() -> None:
    cache = LoginCache()
    for number in range(MAX_RECENT + 1):
        cache.put_recent((str(number).encode(), None, None), login(), ANN)
    assert cache.recent((b"0", None, None)) is None
    assert cache.recent((str(MAX_RECENT).encode(), None, None)) == ANN
