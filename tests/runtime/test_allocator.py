"""Large buffers that threads have freed go back to the system."""

import subprocess
import sys

import pytest

MIB = 1024 * 1024
PROGRAM = """
import sys, threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from proxy.runtime import allocator

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

if sys.argv[1] == "set":
    allocator.return_large_buffers()
bytes(30 << 20)  # the first large buffer that is freed raises glibc's threshold by itself
THREADS, all_hold = 8, threading.Barrier(8)
spacers = []

def work(_):
    for _ in range(3):
        buffer = b"x" * (24 << 20)
        all_hold.wait(60)
        spacers.append(b"y" * 20_000)  # above the buffer, so that its arena cannot shrink
        del buffer

before = resident()
with ThreadPoolExecutor(THREADS) as pool:
    list(pool.map(work, range(THREADS)))
    print(resident() - before)
"""


def kept(mode: str) -> int:
    """Return the bytes that a process still has after its threads freed 192 MiB, three times."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, mode],
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return int(done.stdout)


def test_freed_buffers_go_back_to_the_system() -> None:
    assert kept("set") < 20 * MIB


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from proxy.runtime import allocator  # noqa: PLC0415

    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda name: object())
    allocator.return_large_buffers()
