"""``python -m proxy.app.workers``: a worker; only the main process starts it."""

import asyncio
import sys

import uvloop

from proxy.app.workers.process import Inherited, serve
from proxy.runtime.allocator import return_large_buffers


def main() -> None:
    """Serve with the descriptors that the arguments name."""
    return_large_buffers()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(Inherited(*map(int, sys.argv[1:]))))


if __name__ == "__main__":
    main()
