"""`python -m benchmarks.watched serve …` is `millpond` with a thread that samples its event loop.

Every so many seconds, however long the loop takes, the thread asks the loop for a callback; how
late it comes is how long a client that had just become ready would have waited. The proxy itself
is not changed. Samples go to a file, a JSON line each.
"""

import asyncio
import json
import os
import threading
import time
from typing import NamedTuple

import uvloop

from proxy.cli import main

OUT = "BENCH_SAMPLES"
EVERY = "BENCH_EVERY"


class Sample(NamedTuple):
    """When (monotonic seconds), how late the loop was (seconds), and how many tasks it had."""

    time: float
    late: float
    tasks: int


def _sample(loop: asyncio.AbstractEventLoop, every: float, path: str) -> None:
    taken: list[Sample] = []

    def answer(asked: float) -> None:
        late = time.monotonic() - asked
        tasks = len(asyncio.all_tasks(loop)) if every >= 0.5 else 0  # it is not free
        taken.append(Sample(asked, late, tasks))

    with open(path, "w", buffering=1) as out:  # noqa: PTH123 - a path from the environment
        while not loop.is_closed():
            time.sleep(every)
            try:
                loop.call_soon_threadsafe(answer, time.monotonic())
            except RuntimeError:  # closed meanwhile
                return
            done, taken[:] = taken[:], []
            out.writelines(f"{json.dumps(sample)}\n" for sample in done)


def _watch() -> None:
    make = uvloop.new_event_loop

    def watched_loop() -> asyncio.AbstractEventLoop:
        loop = make()
        watcher = (loop, float(os.environ[EVERY]), os.environ[OUT])
        threading.Thread(target=_sample, args=watcher, daemon=True, name="watch").start()
        return loop

    uvloop.new_event_loop = watched_loop


if __name__ == "__main__":
    _watch()
    main()
