"""Measures a running Millpond from another process: stalls of `/-/healthz` and peak memory.

`python -m tests.attack.probe PORT PID` asks about 50 times a second over one connection, until its
stdin is closed. It writes `ready` at first and one JSON document at the end.

A stall counts only if Millpond caused it. The machine may be busy with something else, so the time
for which Millpond's main thread or this process was ready to run and had no processor is subtracted
from each latency. The kernel counts that time (`/proc/PID/schedstat`, second field, nanoseconds).
"""

import contextlib
import json
import os
import select
import socket
import sys
import time
from pathlib import Path
from typing import Final

_REQUEST: Final = b"GET /-/healthz HTTP/1.1\r\nHost: probe\r\n\r\n"
_PAUSE: Final = 0.02
_LONGEST: Final = 30.0
"""Seconds after which an answer is given up; far beyond every limit."""


class Probe:
    """Asks and measures. `longest` and `raw` are seconds, with and without what is subtracted."""

    def __init__(self, port: int, pid: int) -> None:
        self.longest = 0.0
        self.raw = 0.0
        self.asked = 0
        self.failed = 0
        self._address = ("127.0.0.1", port)
        self._main = Path(f"/proc/{pid}/task/{pid}/schedstat")
        self._own = Path("/proc/self/schedstat")
        self._socket: socket.socket | None = None

    def ask(self) -> None:
        """Send one request and wait for its answer; an open connection is kept."""
        waited, begun = self._waited(), time.monotonic()
        try:
            if self._socket is None:
                self._socket = socket.create_connection(self._address, timeout=_LONGEST)
            self._socket.sendall(_REQUEST)
            is_well = self._socket.recv(4096).startswith(b"HTTP/1.1 200")
        except OSError:
            is_well = False
        if not is_well:
            self._hang_up()
        took = time.monotonic() - begun
        self.asked += 1
        self.failed += not is_well
        self.raw = max(self.raw, took)
        self.longest = max(self.longest, took - (self._waited() - waited))

    def _hang_up(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _waited(self) -> float:
        """Return for how many seconds both processes have waited for a processor so far."""
        total = 0
        for file in (self._main, self._own):
            with contextlib.suppress(OSError):  # Millpond has ended
                total += int(file.read_text().split()[1])
        return total / 1e9


def peak_memory(pid: int) -> int:
    """Return the largest resident size of a process since `reset_peak`, in bytes."""
    return _status(pid, "VmHWM")


def memory(pid: int) -> int:
    """Return the resident size of a process, in bytes."""
    return _status(pid, "VmRSS")


def reset_peak(pid: int) -> None:
    """Let the peak begin anew at the present size (proc(5), `clear_refs`)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


def main() -> None:
    port, pid = map(int, sys.argv[1:])
    probe = Probe(port, pid)
    probe.ask()
    probe.longest = probe.raw = 0.0
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while not select.select([sys.stdin], [], [], _PAUSE)[0]:
        probe.ask()
    probe.ask()
    figures = {name: getattr(probe, name) for name in ("longest", "raw", "asked", "failed")}
    sys.stdout.write(json.dumps(figures))


if __name__ == "__main__":
    os.nice(-5) if os.geteuid() == 0 else None
    main()
