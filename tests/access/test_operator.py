"""The admin token over HTTP: guesses are slowed down and then refused, at their address only."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, TCPConnector

from proxy.access import failures
from proxy.access.failures import PER_USER
from tests.access.people import write_token
from tests.running import Proxy, Start

ADMIN = "Bearer s3cret-of-the-operator"
CONFIGURED = {"rules": [{"allow": "admin", "to": ["user:ops"]}]}


@pytest.fixture(autouse=True)
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(failures, "FIRST_DELAY", 0.0)
    file = tmp_path / "token"
    file.write_text(ADMIN.removeprefix("Bearer "))
    return file


@pytest.fixture(params=[{}, CONFIGURED], ids=["without access", "with access"])
async def proxy(start: Start, token: Path, request: pytest.FixtureRequest) -> Proxy:
    return await start(admin={"token_file": str(token)}, access=request.param)


@pytest.fixture
async def elsewhere(proxy: Proxy) -> AsyncIterator[ClientSession]:
    """A client at another address."""
    connector = TCPConnector(local_addr=("127.0.0.2", 0))
    async with ClientSession(f"http://{proxy.app.address}", connector=connector) as session:
        yield session


async def status(proxy: Proxy, authorization: str, path: str = "/-/pins") -> int:
    return (await proxy.get(path, Authorization=authorization)).status


@pytest.mark.parametrize("path", ["/-/pins", "/-/stats", "/-/api/v1/pins", "/-/api/v1/stats"])
async def test_guesses_end_and_others_notice_nothing(
    proxy: Proxy, elsewhere: ClientSession, path: str
) -> None:
    for number in range(PER_USER):
        assert await status(proxy, f"Bearer guess{number}", path) in (401, 200)
    refused = await proxy.get("/-/pins", Authorization="Bearer another")
    assert refused.status == 429
    assert 0 < int(refused.headers["Retry-After"]) <= 60
    assert await status(proxy, ADMIN) == 429, "the right one would tell the guesser"
    async with elsewhere.get("/-/pins", headers={"Authorization": ADMIN}) as answer:
        assert answer.status == 200


async def test_concurrent_guesses_are_counted_too(proxy: Proxy) -> None:
    guesses = (status(proxy, f"Bearer guess{number}") for number in range(3 * PER_USER))
    found = sorted(await asyncio.gather(*guesses))
    assert found == [401] * PER_USER + [429] * 2 * PER_USER


async def test_the_right_token_forgets_the_wrong_ones(proxy: Proxy) -> None:
    for _ in range(3):
        for _ in range(PER_USER - 1):
            assert await status(proxy, "Bearer typo") == 401
        assert await status(proxy, ADMIN) == 200


async def test_answers_to_guesses_come_later(
    start: Start, token: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(failures, "FIRST_DELAY", 0.05)
    waits: list[float] = []
    monkeypatch.setattr(failures.Failures, "slow_down", _noting(waits, failures.Failures.slow_down))
    proxy = await start(admin={"token_file": str(token)})
    for _ in range(4):
        assert await status(proxy, "Bearer guess") == 401
    assert waits == sorted(waits)
    assert waits[0] == 0 < waits[2] < waits[3]


def _noting(waits: list[float], slow_down: Any) -> Any:
    async def noted(self: failures.Failures, address: str | None, user: str) -> None:
        waits.append(self.delay(address, user))
        await slow_down(self, address, user)

    return noted


@pytest.mark.parametrize("nothing", ["", "Basic b3BzOnBhc3M=", "Bearer mp_0123", "Bearer eyJ.a.b"])
async def test_what_cannot_be_a_guess_is_not_counted(proxy: Proxy, nothing: str) -> None:
    for _ in range(PER_USER + 1):
        assert await status(proxy, nothing) in (401, 403)
    assert await status(proxy, ADMIN) == 200


async def test_guesses_stop_no_administrator_with_an_access_token(
    start: Start, token: Path, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.yaml"
    made = write_token(file, "ops")
    access = CONFIGURED | {"tokens_file": str(file)}
    proxy = await start(admin={"token_file": str(token)}, access=access)
    for _ in range(PER_USER):
        assert await status(proxy, "Bearer guess") == 401
    assert await status(proxy, "Bearer guess") == 429
    assert await status(proxy, f"Bearer {made}") == 200
