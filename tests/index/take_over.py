"""Opens an index of the former layout, and is killed when it calls a function."""

import asyncio
import importlib
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from proxy.index.sqlite import SqliteIndex


def kill(*_: Any, **__: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def main(path: Path) -> None:
    async with SqliteIndex(path, clock=time.time, on_error=lambda: None):
        pass


if __name__ == "__main__":
    module, _, name = sys.argv[2].rpartition(".")
    setattr(importlib.import_module(module), name, kill)
    asyncio.run(main(Path(sys.argv[1])))
