"""Limits in isolation: which clients count as one, which wait, are refused, or are dropped."""

import asyncio
import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.access import limits as module
from proxy.access.limits import Client, ClientLimits
from proxy.access.principals import OPERATOR, Principal
from proxy.core.errors import RateLimited
from proxy.runtime.part_counters import LIMITS, LimitCounters
from proxy.settings.access import Access
from tests.fakes.clock import Clock
from tests.running import until


def made(now: Any = time.monotonic, **limits: Any) -> ClientLimits:
    access = Access.model_validate({"limits": limits})
    return ClientLimits(access, {name: LimitCounters() for name in LIMITS}, now)


def client(limits: ClientLimits, address: str = "10.0.0.1") -> Client:
    found = limits.client(Principal(address))
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("one", "other", "is_same"),
    [
        (Principal("10.0.0.1"), Principal("10.0.0.1"), True),
        (Principal("10.0.0.1"), Principal("10.0.0.2"), False),
        (Principal("2001:db8::1"), Principal("2001:db8::ffff:1"), True),
        (Principal("2001:db8::1"), Principal("2001:db8:0:1::1"), False),
        (Principal("::ffff:10.0.0.1"), Principal("10.0.0.1"), True),
        (Principal("::ffff:10.0.0.1"), Principal("::ffff:10.0.0.2"), False),
        (Principal("fe80::1%eth0"), Principal("fe80::2"), True),
        (Principal("10.0.0.1", "eve"), Principal("10.0.0.2", "eve"), True),
        (Principal("10.0.0.1", "eve"), Principal("10.0.0.1"), False),
        (Principal("10.0.0.2", "10.0.0.1"), Principal("10.0.0.1"), False),
        (Principal("no address"), Principal("no address"), True),
    ],
)
def test_who_is_one_client(one: Principal, other: Principal, is_same: bool) -> None:
    limits = made(downloads=1)
    assert (limits.client(one) is limits.client(other)) == is_same


def test_nobody_is_counted_without_configuration_or_on_the_admin_socket() -> None:
    assert made().client(Principal("10.0.0.1")) is None
    assert made(downloads=1).client(OPERATOR) is None
    users = ClientLimits(Access(anonymous=False), {})
    assert users.client(Principal("10.0.0.1")) is not None, "for the statistics"


async def test_requests_wait_in_order_and_then_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAIT", 0.5)
    clock = Clock()  # stands still while they ask
    limits = made(clock, requests_per_second=20)
    eve, order = client(limits), []
    began = time.monotonic()

    async def ask(number: int) -> float:
        await eve.admit()
        order.append(number)
        return time.monotonic() - began

    asking = asyncio.gather(*map(ask, range(60)), return_exceptions=True)
    await until(lambda: eve.refused > 0)
    clock.advance(0.1)
    answers = await asking
    times = [answer for answer in answers if isinstance(answer, float)]
    refused = [answer for answer in answers if isinstance(answer, RateLimited)]
    assert len(times) + len(refused) == 60
    assert 48 <= len(times) <= 52, "two seconds' worth at once, half a second's worth later"
    assert order == sorted(order)
    assert times[39] < times[40]
    assert times[-1] >= 0.35
    assert refused[0].retry_after is not None
    assert refused[0].retry_after > 0.5
    assert (refused[0].status, refused[0].code) == (429, "TOOMANYREQUESTS")
    counted = limits.counters["requests"]
    assert (counted.delayed, counted.refused) == (len(times) - 40, len(refused))
    assert counted.seconds > 0
    assert eve.waiting == 0


async def test_another_client_does_not_wait() -> None:
    limits = made(requests_per_second=0.1)
    await client(limits).admit()
    greedy = asyncio.create_task(client(limits).admit())
    await until(lambda: client(limits).waiting == 1)
    await asyncio.wait_for(client(limits, "10.0.0.2").admit(), 30)
    greedy.cancel()
    await asyncio.wait([greedy])
    assert client(limits).waiting == 0


async def test_the_number_of_waiting_requests_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_WAITING", 3)
    eve = client(made(requests_per_second=1))
    for _ in range(2):
        await eve.admit()
    waiting = [asyncio.create_task(eve.admit()) for _ in range(3)]
    await until(lambda: eve.waiting == 3)
    with pytest.raises(RateLimited):
        await eve.admit()
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)


async def test_bytes_are_shared_by_the_transfers_of_one_client() -> None:
    eve = client(made(bytes_per_second=1_000_000))
    sent = [0, 0, 0]
    began = time.monotonic()

    async def transfer(number: int) -> None:
        while sum(sent) < 2_000_000:
            sent[number] += await eve.acquire(1_000_000)
            await asyncio.sleep(0)  # as every way of sending does

    async with asyncio.timeout(10):
        await asyncio.gather(*map(transfer, range(3)))
    seconds = time.monotonic() - began
    assert sum(sent) <= 1_000_000 * (1 + seconds) + 150_000
    assert max(sent) - min(sent) <= 100_000


async def test_a_cancelled_turn_costs_nothing() -> None:
    clock = Clock()
    eve = client(made(clock, bytes_per_second=100))  # so that no turn comes meanwhile
    assert eve.try_request(5000)
    tasks = [asyncio.create_task(eve.acquire(10_000_000)) for _ in range(1000)]
    await until(lambda: eve.waiting == 1000)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    clock.now += 60
    await asyncio.wait_for(eve.acquire(1), 30)


async def test_a_small_body_never_waits_longer_than_clients_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAIT", 0.05)
    eve = client(made(bytes_per_second=1024))
    await asyncio.wait_for(eve.acquire_small(1_000_000), 30)


async def test_downloads_begin_in_order_and_then_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_WAIT", 60)
    eve, order = client(made(downloads=2)), []
    for _ in range(2):
        assert eve.downloads.begin()
    ending = asyncio.Event()

    async def transfer(number: int) -> None:
        async with eve.download():
            order.append(number)
            await ending.wait()

    tasks = [asyncio.create_task(transfer(number)) for number in range(3)]
    await until(lambda: eve.waiting == 3)
    monkeypatch.setattr(module, "MAX_WAIT", 0.3)
    tasks.append(asyncio.create_task(transfer(3)))
    await asyncio.sleep(0)
    assert eve.waiting == 4
    eve.downloads.end()
    await until(lambda: order == [0])
    tasks[1].cancel()
    await asyncio.wait([tasks[1]])
    eve.downloads.end()
    await until(lambda: order == [0, 2])
    with pytest.raises(RateLimited):
        await tasks[3]
    assert eve.downloads.active == 2
    assert eve.downloads.waiting == eve.waiting == 0
    ending.set()
    await asyncio.gather(tasks[0], tasks[2])
    assert eve.downloads.active == 0


async def test_a_download_that_ends_when_a_waiter_has_timed_out_lets_the_next_begin() -> None:
    """The loop was busy: the time is up, and the waiter's task has not run yet."""
    eve = client(made(downloads=1))
    assert eve.downloads.begin()
    late, next_one = [asyncio.create_task(eve.downloads.wait()) for _ in range(2)]
    await asyncio.sleep(0)
    late.cancel()  # what its timeout does
    eve.downloads.end()
    await asyncio.wait([late, next_one], timeout=30)
    assert late.cancelled()
    assert next_one.result() is None
    assert (eve.downloads.active, eve.downloads.waiting) == (1, 0)


async def hold(eve: Client) -> None:
    """Begin a download, and end it at once."""
    async with eve.download():
        pass


async def test_a_download_that_began_as_its_client_left_is_ended() -> None:
    eve = client(made(downloads=1))
    assert eve.downloads.begin()
    task = asyncio.create_task(hold(eve))
    await until(lambda: eve.waiting == 1)
    eve.downloads.end()  # it may begin, and is cancelled before it runs
    task.cancel()
    await asyncio.wait([task])
    assert eve.downloads.active == 0
    assert eve.downloads.begin()


async def test_new_limits_hold_for_clients_that_are_there() -> None:
    limits = made(downloads=1)
    eve = client(limits)
    assert eve.downloads.begin()
    waiting = asyncio.create_task(hold(eve))
    await until(lambda: eve.waiting == 1)
    limits.use(Access.model_validate({"limits": {"downloads": 2, "bytes_per_second": 5000}}))
    await asyncio.wait_for(waiting, 30)
    assert await eve.acquire(10**9) == module.MIN_PIECE
    limits.use(Access())
    assert await eve.acquire(10**9) == 10**9
    assert eve.try_request(10**9)


def test_the_fast_way_counts_what_need_not_wait() -> None:
    clock = Clock()
    eve = client(made(clock, requests_per_second=0.5, bytes_per_second=1024))
    assert eve.try_request(2000)
    assert not eve.try_request(1), "the bytes are in debt"
    clock.advance(2)
    assert eve.try_request(1)
    assert not eve.try_request(0), "no request is left"
    assert (eve.requests, eve.sent) == (2, 2001)


def test_clients_whose_past_no_longer_matters_are_forgotten(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "KEPT", 10)
    clock = Clock()
    limits = made(clock, requests_per_second=1)
    for number in range(100):
        assert client(limits, f"10.0.0.{number}").try_request(0)
    assert len(limits) == 100, "none has its tokens back"
    clock.advance(2)
    client(limits, "10.0.0.99")
    assert len(limits) == 10
    monkeypatch.setattr(module, "MAX_CLIENTS", 20)
    for number in range(100):
        assert client(limits, f"10.1.0.{number}").try_request(0)
    assert len(limits) == 20


def test_statistics_name_who_asks_and_who_reads_the_most() -> None:
    limits = made(bytes_per_second=10**9)
    for number in range(1, 50):
        for _ in range(number):
            assert client(limits, f"10.0.0.{number}").try_request(0)
    assert client(limits, "10.0.0.1").try_request(1_000_000)
    shown = limits.top(3)
    assert [entry["client"] for entry in shown[:3]] == ["10.0.0.49", "10.0.0.48", "10.0.0.47"]
    assert shown[3]["client"] == "10.0.0.1"
    assert shown[3]["bytes"] == 1_000_000
    assert len(shown) <= 6


def test_refusals_are_logged_once_in_a_while() -> None:
    clock = Clock()
    limits = made(clock, requests_per_second=1)
    eve = client(limits)
    with capture_logs() as lines:
        for _ in range(1000):
            limits.refused(eve, "requests")
        clock.advance(module.LOG_SECONDS)
        limits.refused(eve, "requests")
    assert [line["unlogged"] for line in lines if line["event"] == "client limited"] == [0, 999]
