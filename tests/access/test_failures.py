import asyncio

import pytest

from proxy.access import failures
from proxy.access.failures import PER_ADDRESS, PER_USER, Failures
from proxy.core.errors import TooManyFailures


def test_after_some_failures_a_user_must_wait_at_this_address_only() -> None:
    table = Failures()
    for _ in range(PER_USER):
        table.admit("10.0.0.1", "ann")
        table.add("10.0.0.1", "ann")
    with pytest.raises(TooManyFailures) as error:
        table.admit("10.0.0.1", "ann")
    assert 0 < int(error.value.headers()["Retry-After"]) <= failures.FORGET_SECONDS
    table.admit("10.0.0.1", "bob")
    table.admit("10.0.0.2", "ann")


def test_one_password_for_many_users_is_slowed_down_too() -> None:
    table = Failures()
    for number in range(PER_ADDRESS):
        table.add("10.0.0.1", f"user{number}")
    with pytest.raises(TooManyFailures):
        table.admit("10.0.0.1", "another")
    table.admit("10.0.0.2", "another")


def test_a_network_of_ipv6_is_one_client() -> None:
    table = Failures()
    for number in range(PER_USER):
        table.add(f"2001:db8:1:2::{number:x}", "ann")
    with pytest.raises(TooManyFailures):
        table.admit("2001:db8:1:2:ffff::1", "ann")
    table.admit("2001:db8:1:3::1", "ann")


def test_clients_of_ipv4_on_a_socket_of_both_versions_are_not_one_network() -> None:
    table = Failures()
    for _ in range(PER_ADDRESS):
        table.add("::ffff:10.0.0.1", "ann")
    with pytest.raises(TooManyFailures):
        table.admit("10.0.0.1", "ann")
    table.admit("::ffff:10.0.0.2", "ann")


def test_a_success_forgets_the_failures_of_the_user() -> None:
    table = Failures()
    for _ in range(PER_USER):
        table.add("10.0.0.1", "ann")
    table.forget("10.0.0.1", "ann")
    table.admit("10.0.0.1", "ann")


def test_failures_are_forgotten_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    table, now = Failures(), 1000.0
    monkeypatch.setattr(failures.time, "monotonic", lambda: now)
    for _ in range(PER_USER):
        table.add(None, "ann")
    now += failures.FORGET_SECONDS - 1
    with pytest.raises(TooManyFailures):
        table.admit(None, "ann")
    now += 2
    table.admit(None, "ann")


def test_the_delay_grows_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Failures()
    monkeypatch.setattr(failures.time, "monotonic", lambda: 1000.0)
    delays = []
    for _ in range(PER_USER):
        table.add("10.0.0.1", "ann")
        delays.append(table.delay("10.0.0.1", "ann"))
    assert delays[: failures.FREE] == [0.0] * failures.FREE
    assert delays == sorted(delays)
    assert delays[-1] == failures.LONGEST_DELAY
    assert table.delay("10.0.0.1", "bob") == 0.0


def test_the_table_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_ENTRIES", 50)
    table = Failures()
    for number in range(200):
        table.add(f"10.0.0.{number}", "ann")
    assert len(table._entries) == 50


async def test_waiting_clients_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failures, "MAX_SLEEPERS", 1)
    monkeypatch.setattr(failures, "FIRST_DELAY", 3600.0)
    monkeypatch.setattr(failures, "LONGEST_DELAY", 3600.0)
    table = Failures()
    for _ in range(failures.FREE + 1):
        table.add(None, "ann")
    first = asyncio.create_task(table.slow_down(None, "ann"))
    while not table._sleepers:
        await asyncio.sleep(0)
    await asyncio.wait_for(table.slow_down(None, "ann"), 60)
    first.cancel()
    await asyncio.wait([first])
    assert table._sleepers == 0
