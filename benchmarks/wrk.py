"""Drives wrk, and reads what it prints.

wrk cannot ask by HEAD: its parser waits for the body that Content-Length announces. For that there
is `benchmarks.heads`.
"""

import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.parts.process import command

_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


@dataclass(frozen=True, slots=True)
class Load:
    """What came of one run: requests answered with 2xx, over how many seconds, and their p99."""

    requests: int
    seconds: float
    p99_ms: float

    @property
    def per_second(self) -> float:
        """Requests answered a second."""
        return self.requests / self.seconds


@dataclass(frozen=True, slots=True)
class Shot:
    """What wrk is to do: `connections` from one thread, for `seconds`; `script` is Lua."""

    url: str
    headers: Mapping[str, str]
    connections: int = 32
    seconds: float = 2
    script: Path | None = None

    @property
    def argv(self) -> list[str]:
        """The command."""
        words = [command("wrk"), "--latency", "--threads=1", "--timeout=10s"]
        words += [f"--connections={self.connections}", f"--duration={self.seconds:g}s"]
        words += [f"--header={name}: {value}" for name, value in self.headers.items()]
        if self.script:
            words.append(f"--script={self.script}")
        return [*words, self.url]


def fire(shot: Shot) -> Load:
    """Run wrk once."""
    return fire_all([shot])[0]


def fire_all(shots: Sequence[Shot]) -> list[Load]:
    """Run several at the same time."""
    running = [subprocess.Popen(shot.argv, stdout=subprocess.PIPE, text=True) for shot in shots]
    return [_read(process.communicate(timeout=120)[0]) for process in running]


def _read(said: str) -> Load:
    assert "Non-2xx" not in said, said
    errors = re.search(
        r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", said
    )
    assert not errors, said
    total = re.search(r"(\d+) requests in ([\d.]+)(ms|us|s|m),", said)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s|m)\b", said)
    assert total, said
    assert p99, said
    seconds = float(total[2]) * _UNITS[total[3]] / 1e3
    return Load(int(total[1]), seconds, float(p99[1]) * _UNITS[p99[2]])
