"""Writes facts until it is killed; prints the number of each once its verb has returned."""

import asyncio
import sys
import time
from pathlib import Path

from proxy.core.names import Tag
from proxy.index.sqlite import SqliteIndex
from tests.index.indexes import NGINX, digest, listing, manifest, tagged


async def main(path: Path) -> None:
    numbers = iter(range(1_000_000))
    async with SqliteIndex(path, clock=time.time, on_error=lambda: None) as index:

        async def write() -> None:
            for number in numbers:
                await index.set_blob(manifest(number), listing(number + 1, number + 2))
                await index.link(NGINX, [digest(number)])
                await index.set_tag(NGINX, Tag(f"v{number}"), tagged(number, 1.0))
                await index.set_note(f"n{number}", number)
                sys.stdout.write(f"{number}\n")
                sys.stdout.flush()

        await asyncio.gather(*(write() for _ in range(4)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1])))
