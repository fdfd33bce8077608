"""Files without a row count towards the limit, while they are adopted and afterwards."""

import asyncio
from pathlib import Path

from tests.crash import disk
from tests.fakes.content import blob, digest
from tests.fakes.upstream import FakeUpstream
from tests.running import Start

BUDGET = 4 * 1024**2
PIECE = 4096
REPO = "library/app"


def orphan(storage: Path, number: int) -> str:
    data = blob(PIECE, f"orphan {number}")
    name = digest(data)
    (storage / "blobs" / "sha256" / name.partition(":")[2]).write_bytes(data)
    return name


async def test_t05_blobs_without_a_row_count_from_the_first_request_on(
    upstream: FakeUpstream, start: Start, tmp_path: Path
) -> None:
    storage = tmp_path / "cache"
    (storage / "blobs" / "sha256").mkdir(parents=True)
    for number in range(BUDGET // PIECE):
        orphan(storage, number)
    new = [upstream.add_blob(REPO, blob(200_000, number)) for number in range(5)]
    proxy = await start(storage={"max_size": BUDGET})
    fullest = 0

    async def weigh() -> None:
        nonlocal fullest
        while True:
            fullest = max(fullest, (await asyncio.to_thread(disk.look, storage)).bytes)
            await asyncio.sleep(0.05)  # looking costs the proxy its turns

    watching = asyncio.create_task(weigh())
    answers = await asyncio.gather(*(proxy.get(f"/v2/{REPO}/blobs/{name}") for name in new))
    async with asyncio.timeout(60):
        while proxy.stats["cache"]["files"] != len(await asyncio.to_thread(proxy.held)):
            await asyncio.sleep(0.05)
    watching.cancel()
    assert [answer.status for answer in answers] == [200] * len(new)
    assert fullest <= BUDGET
