"""Which tests execute which lines of `proxy/`, and how long each test takes.

`python -m pytest -p tests.breakages.covering` writes that into the directory that the environment
variable `COVERING` names, a file a worker. It needs the package `coverage`. Only what runs in pytest's own process is
seen, threads included.
"""

import json
import os
import time
from collections import defaultdict
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Covering:
    """`lines`: by file and line the tests that execute it; `seconds`: how long a test takes."""

    lines: Mapping[str, Mapping[int, list[str]]]
    seconds: Mapping[str, float]

    def of_line(self, path: str, first: int) -> list[str]:
        """Return the tests that execute a line."""
        return list(self.lines.get(path, {}).get(first, []))

    def of_module(self, path: str) -> list[str]:
        """Return the tests that execute anything of a module, those first that execute most."""
        counted: dict[str, int] = defaultdict(int)
        for tests in self.lines.get(path, {}).values():
            for test in tests:
                counted[test] += 1
        return sorted(counted, key=lambda test: -counted[test])


def read(directory: Path) -> Covering:
    """Return what a run has written, all its workers together."""
    lines: dict[str, dict[int, list[str]]] = defaultdict(lambda: defaultdict(list))
    seconds: dict[str, float] = {}
    for file in sorted(directory.glob("*.json")):
        found = json.loads(file.read_text())
        names = found["tests"]
        seconds |= found["seconds"]
        for path, by_line in found["lines"].items():
            for line, numbers in by_line.items():
                lines[path][int(line)] += [names[number] for number in numbers]
    return Covering(lines, seconds)


class Recorder:
    """Tells `coverage` which test runs, and writes the file at the end."""

    def __init__(self, file: Path) -> None:
        from coverage import Coverage  # noqa: PLC0415 - needed for this run only

        self._file = file
        self._coverage = Coverage(data_file=None, include=[f"{_ROOT}/proxy/*"])
        self._seconds: dict[str, float] = {}
        self._coverage.start()

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, Any, Any]:
        self._coverage.switch_context(item.nodeid)
        begun = time.monotonic()
        try:
            return (yield)
        finally:
            self._seconds[item.nodeid] = round(time.monotonic() - begun, 3)

    def pytest_sessionfinish(self) -> None:
        self._coverage.stop()
        data = self._coverage.get_data()
        tests = list(self._seconds)
        numbers = {test: number for number, test in enumerate(tests)}
        lines = {}
        for path in data.measured_files():
            by_line = data.contexts_by_lineno(path)
            lines[Path(path).relative_to(_ROOT).as_posix()] = {
                line: [numbers[test] for test in some if test in numbers]
                for line, some in by_line.items()
            }
        document = {"tests": tests, "seconds": self._seconds, "lines": lines}
        self._file.write_text(json.dumps(document))


def pytest_configure(config: pytest.Config) -> None:
    """Record, unless the workers do."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    if worker or not config.getoption("numprocesses", None):
        file = Path(os.environ["COVERING"]) / f"{worker or 'only'}.json"
        config.pluginmanager.register(Recorder(file))
