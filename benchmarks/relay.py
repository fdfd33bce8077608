"""A relay that stands for a long way: `python -m benchmarks.relay HOST:PORT ROUND_TRIP RATE`.

It holds back every piece by half a round trip (seconds) in each direction, and the first of a
connection by one more, which is what the handshake would have taken. RATE limits what each
connection gives to its client, in bytes a second; 0 is no limit. It prints its port.

It knows nothing of HTTP, so whatever a proxy does to be faster reaches the real registry.
"""

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import uvloop

from tests.parts.process import Daemon, hermetic, workdir

_PIECE = 64 * 1024
_IN_FLIGHT = 256  # pieces


@dataclass(frozen=True, slots=True)
class Way:
    """Seconds that a piece takes, the first one's extra, and bytes a second (0: no limit)."""

    delay: float
    handshake: float = 0.0
    rate: float = 0.0


@contextmanager
def running(target: str, round_trip: float = 0.0, rate: float = 0.0) -> Iterator[str]:
    """Give the host:port of a relay to `target`, a host:port. A process of its own."""
    with workdir("relay") as root:
        argv = [sys.executable, "-m", __name__, target, str(round_trip), str(rate)]
        here = str(Path(__file__).resolve().parents[1])
        daemon = Daemon(argv, hermetic(root, PYTHONPATH=here), root / "relay.log")
        daemon.start(lambda: daemon.stdout.read_text().endswith("\n"))
        try:
            yield f"127.0.0.1:{daemon.stdout.read_text().strip()}"
        finally:
            daemon.stop()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: Way) -> None:
    """Carry one direction to its end."""
    loop = asyncio.get_running_loop()
    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(_IN_FLIGHT)

    async def arrive() -> None:
        extra = way.handshake
        with suppress(ConnectionError):
            while piece := await reader.read(_PIECE):
                await under_way.put((loop.time() + way.delay + extra, piece))
                extra = 0.0
        await under_way.put((loop.time() + way.delay, b""))

    arriving = loop.create_task(arrive(), name="arrive")
    try:
        earliest = 0.0
        while True:
            due, piece = await under_way.get()
            wait = max(due, earliest) - loop.time()
            if wait > 0:
                await asyncio.sleep(wait)
            if not piece:
                break
            if way.rate:
                earliest = max(loop.time() - 0.05, earliest) + len(piece) / way.rate
            writer.write(piece)
            await writer.drain()
        writer.write_eof()
    finally:
        arriving.cancel()


async def _serve(target: str, round_trip: float, rate: float) -> None:
    host, _, port = target.rpartition(":")

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind_reader, behind_writer = await asyncio.open_connection(host, int(port))
        there = _carry(reader, behind_writer, Way(round_trip / 2, handshake=round_trip))
        back = _carry(behind_reader, writer, Way(round_trip / 2, rate=rate))
        with suppress(OSError, RuntimeError):
            async with asyncio.TaskGroup() as both:
                both.create_task(_quiet(there, behind_writer))
                both.create_task(_quiet(back, writer))
        writer.close()
        behind_writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0, limit=_PIECE)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


async def _quiet(carrying: "asyncio.Coroutine", writer: asyncio.StreamWriter) -> None:
    """Carry; a connection that is reset takes its other half along."""
    try:
        await carrying
    except OSError:
        writer.transport.abort()
        raise


if __name__ == "__main__":
    uvloop.run(_serve(sys.argv[1], float(sys.argv[2]), float(sys.argv[3])))
