import asyncio

import pytest
from structlog.testing import capture_logs

from proxy.runtime.client_key import CLIENT_KEY
from proxy.runtime.singleflight import SingleFlight


async def test_many_callers_share_one_run() -> None:
    once: SingleFlight[int] = SingleFlight("test")
    runs = 0

    async def work() -> int:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.01)
        return runs

    assert await asyncio.gather(*(once.do("k", work) for _ in range(50))) == [1] * 50
    assert await once.do("k", work) == 2


async def test_t06_the_first_caller_may_leave() -> None:
    once: SingleFlight[str] = SingleFlight("test")
    gate = asyncio.Event()

    async def work() -> str:
        await gate.wait()
        return "done"

    first = asyncio.create_task(once.do("k", work))
    second = asyncio.create_task(once.do("k", work))
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await second == "done"
    assert first.cancelled() or first.cancelling()


async def test_t38_a_failure_reaches_every_waiter_and_the_next_starts_anew() -> None:
    once: SingleFlight[str] = SingleFlight("test")

    async def fail() -> str:
        await asyncio.sleep(0)
        raise ConnectionError("down")

    async def succeed() -> str:
        return "up"

    results = await asyncio.gather(*(once.do("k", fail) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(result, ConnectionError) for result in results)
    assert await once.do("k", succeed) == "up"


async def test_close_ends_what_runs() -> None:
    once: SingleFlight[None] = SingleFlight("test")
    ended = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    waiter = asyncio.create_task(once.do("k", work))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    await once.close()
    assert ended.is_set()
    assert not once.is_running("k")
    with pytest.raises(asyncio.CancelledError):
        await waiter


async def test_t60_what_fails_while_nobody_waits_is_logged() -> None:
    once: SingleFlight[None] = SingleFlight("refresh")

    async def work() -> None:
        raise LookupError("out of the blue")

    with capture_logs() as logged:
        once.start("k", work)
        once.start("k", work)
        while once.is_running("k"):
            await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert {entry["work"] for entry in logged} == {"refresh k"}
    assert isinstance(logged[0]["exc_info"], LookupError)


async def test_work_for_different_clients_is_not_shared() -> None:
    once: SingleFlight[str] = SingleFlight("test")
    gate = asyncio.Event()

    async def work() -> str:
        await gate.wait()
        return CLIENT_KEY.get()

    async def ask(client: str) -> str:
        CLIENT_KEY.set(client)
        assert not once.is_running("k")
        return await once.do("k", work)

    asking = [asyncio.create_task(ask(client)) for client in ("ann", "bob")]
    await asyncio.sleep(0)
    assert len(once) == 2
    gate.set()
    assert await asyncio.gather(*asking) == ["ann", "bob"]
    await asyncio.sleep(0)
    assert not len(once)
