"""Request lines: complete, the same however they are put together, and never waited for."""

import io
import json
import re
from typing import Any

import pytest
import structlog

from proxy.runtime import logs
from proxy.runtime.logs import RequestLog


class Broken(io.StringIO):
    is_full = True

    def write(self, text: str) -> int:
        if self.is_full:
            raise OSError("no space")
        return super().write(text)


def log_to(stream: io.StringIO, form: Any = "json", drops: list[int] | None = None) -> RequestLog:
    output = logs.configure("info", form, stream)
    lost: list[int] = [] if drops is None else drops
    return RequestLog(output, level="info", on_drop=lost.append)


def test_a_line_has_what_is_known() -> None:
    stream = io.StringIO()
    log = log_to(stream)
    shared = {"method": "GET", "error": None, "agent": 'quo"ted \x01', "bytes": 3}
    log.add(shared, 0.0000123, "::1", "id")
    log.add(shared, 1.5, None, "id")
    log.add({"method": "HEAD"}, 0.0, "10.0.0.1", "id")
    log.flush()
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    stamps = [line.pop("timestamp") for line in (first, second, third)]
    assert all(len(stamp) == len("2024-01-01T00:00:00.000000Z") for stamp in stamps)
    assert stamps == sorted(stamps)
    usual = {"event": "request", "level": "info"}
    known = usual | {"method": "GET", "agent": 'quo"ted \x01', "bytes": 3}
    own = {"request_id": "id"}
    assert first == known | own | {"seconds": 0.000012, "client": "::1"}
    assert second == known | own | {"seconds": 1.5}
    assert third == usual | own | {"method": "HEAD", "seconds": 0.0, "client": "10.0.0.1"}


def test_a_line_for_people() -> None:
    stream = io.StringIO()
    log = log_to(stream, "console")
    log.add({"method": "GET", "error": None}, 0.25, "::1", "id")
    log.flush()
    [line] = stream.getvalue().splitlines()
    assert "method=GET" in line
    assert "seconds=0.25" in line
    assert "client=::1" in line
    assert "request_id=id" in line
    assert "error" not in line


def test_many_lines_are_written_some_at_a_time() -> None:
    stream = io.StringIO()
    log = log_to(stream)
    for number in range(logs.BATCH + 1):
        log.add({"number": number}, 0.0, None, "id")
    log.flush()
    assert len(stream.getvalue().splitlines()) == logs.BATCH
    log.flush()
    numbers = [json.loads(line)["number"] for line in stream.getvalue().splitlines()]
    assert numbers == list(range(logs.BATCH + 1))


def test_a_flood_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_PENDING", 2)
    drops: list[int] = []
    log = log_to(io.StringIO(), drops=drops)
    for _ in range(5):
        log.add({}, 0.0, None, "id")
    assert len(drops) == 3


def test_what_cannot_be_written_is_counted() -> None:
    drops: list[int] = []
    stream = Broken()
    log = log_to(stream, drops=drops)
    assert log.is_complete
    for _ in range(3):
        log.add({}, 0.0, None, "id")
    log.flush()
    assert (drops, log.is_complete) == ([3], False)
    log.flush()
    assert (drops, log.is_complete) == ([3], False)
    stream.is_full = False
    log.add({}, 0.0, None, "id")
    log.flush()
    assert (drops, log.is_complete) == ([3], True)


def test_nothing_relies_on_lines_that_may_be_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "NEARLY_FULL", 2)
    log = log_to(io.StringIO())
    found = []
    for _ in range(3):
        found.append(log.is_complete)
        log.add({}, 0.0, None, "id")
    log.flush()
    assert [*found, log.is_complete] == [True, True, False, True]
    log.set_level("warning")
    assert not log.is_complete


def test_what_cannot_be_said_fails_nobody() -> None:
    log_to(Broken())
    structlog.get_logger("proxy").error("the disk is full")
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["json", "console"])
@pytest.mark.parametrize(
    ("level", "logged"),
    [("debug", [200, 404, 500, 502]), ("info", [200, 404, 500, 502]), ("warning", [500, 502]),
     ("error", [])],
)  # fmt: skip
def test_t66_requests_that_end_in_5xx_are_warnings(
    form: Any, level: logs.Level, logged: list[int]
) -> None:
    stream = io.StringIO()
    output = logs.configure(level, form, stream)
    log = RequestLog(output, level=level, on_drop=lambda _: None)
    for status in (200, 404, 500, 502):
        log.add({"status": status}, 0.0, None, "id")
    log.flush()
    lines = stream.getvalue().splitlines()
    statuses = [re.search(r"status\W+(\d{3})", line) for line in lines]
    assert [int(found[1]) for found in statuses if found] == logged
    shown = [(status, line) for status, line in zip(logged, lines, strict=True)]
    assert all(("warning" in line) == (status >= 500) for status, line in shown)
