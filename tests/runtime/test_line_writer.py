"""The writer of lines: order, a sink that fails, a sink that is replaced, a full queue, the end."""

import asyncio
import threading
from dataclasses import dataclass, field
from typing import Any

import pytest
from structlog.testing import capture_logs

from proxy.runtime import line_writer
from proxy.runtime.line_writer import LineWriter
from tests.running import until


@dataclass
class Lines:
    """A sink in memory. It fails while `error` is set, and blocks while `gate` is closed."""

    error: Exception | None = None
    most: int = 10**9
    lines: list[str] = field(default_factory=list)
    opened: int = 0
    closed: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    def open(self) -> None:
        self._fail()
        self.opened += 1

    def render(self, item: int | str) -> bytes:
        return f"{item}".encode()

    def write(self, lines: list[bytes]) -> int:
        self.gate.wait(30)
        self._fail()
        self.lines += [line.decode() for line in lines[: self.most]]
        return min(len(lines), self.most)

    def close(self) -> None:
        self.closed += 1

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


class Writer:
    """A writer, and what it reports."""

    def __init__(self, sink: Lines) -> None:
        self.lost = 0
        self.troubles: list[str | None] = []
        self.writer: LineWriter[Any] = LineWriter(
            sink,
            lost=lambda count: f"{count} lost",
            on_lost=self._lose,
            on_error=self.troubles.append,
        )
        self.writer.start()

    def _lose(self) -> None:
        self.lost += 1


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(line_writer, "RETRY_SECONDS", 0.02)


def numbers(count: int, first: int = 0) -> list[str]:
    return [str(number) for number in range(first, first + count)]


async def test_lines_are_written_in_order_and_all_at_the_end() -> None:
    sink = Lines(most=7)
    writer = Writer(sink)
    for number in range(5000):
        writer.writer.add(number)
    await until(lambda: len(sink.lines) == 5000)
    for number in range(5000, 6000):
        writer.writer.add(number)
    await writer.writer.close(Lines())
    assert sink.lines == numbers(6000)
    assert (sink.opened, sink.closed, writer.lost, writer.troubles) == (1, 1, 0, [])


@pytest.mark.parametrize("error", [OSError(28, "no space"), ValueError("I/O on closed file")])
async def test_what_cannot_be_written_is_kept_and_written_later(error: Exception) -> None:
    sink = Lines()
    writer = Writer(sink)
    with capture_logs() as logged:
        sink.error = error
        for number in range(2000):
            writer.writer.add(number)
        await until(lambda: len(writer.troubles) >= 3)
        assert sink.lines == []
        sink.error = None
        await until(lambda: len(sink.lines) == 2000)
        await until(lambda: writer.troubles[-1] is None)
    await writer.writer.close(Lines())
    assert sink.lines == numbers(2000)
    assert set(writer.troubles[:-1]) == {getattr(error, "strerror", None) or str(error)}
    levels = [line["log_level"] for line in logged]
    assert levels == ["error", "warning"], "said once, not with every attempt"


async def test_a_full_queue_counts_what_is_missing_and_says_where(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "MAX_PENDING", 100)
    sink = Lines(error=OSError(28, "no space"))
    with pytest.raises(OSError, match="no space"):
        Writer(sink)
    sink.error = None
    writer = Writer(sink)
    sink.error = OSError(28, "no space")
    for number in range(150):
        writer.writer.add(number)
    assert writer.lost == 50
    sink.error = None
    await until(lambda: len(sink.lines) == 100)
    writer.writer.add("later")
    await writer.writer.close(Lines())
    assert sink.lines == [*numbers(100), "50 lost", "later"]


async def test_what_is_missing_is_said_at_the_end_at_the_latest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "MAX_PENDING", 10)
    sink = Lines()
    sink.gate.clear()
    writer = Writer(sink)
    for number in range(30):
        writer.writer.add(number)
    sink.gate.set()
    await writer.writer.close(Lines())
    assert sink.lines[-1] == f"{writer.lost} lost"


async def test_callers_wait_for_room_unless_nothing_can_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "MAX_PENDING", 10)
    monkeypatch.setattr(line_writer, "ROOM_SECONDS", 60.0)
    sink = Lines()
    sink.gate.clear()
    writer = Writer(sink)
    for number in range(9):
        writer.writer.add(number)
    waiting = asyncio.create_task(writer.writer.wait_for_room())
    await asyncio.sleep(0.1)
    assert not waiting.done()
    sink.gate.set()
    await asyncio.wait_for(waiting, 30)
    sink.error = OSError(28, "no space")
    for number in range(9):
        writer.writer.add(number)
    await until(lambda: bool(writer.troubles))
    await asyncio.wait_for(writer.writer.wait_for_room(), 30)
    assert writer.writer.is_nearly_full
    await writer.writer.close(Lines())


async def test_another_sink_gets_what_comes_from_then_on() -> None:
    first, second = Lines(), Lines()
    writer = Writer(first)
    writer.writer.add(1)
    await until(lambda: first.lines == ["1"])
    writer.writer.use(second)
    writer.writer.add(2)
    await until(lambda: second.lines == ["2"])
    assert (first.lines, first.closed, second.opened) == (["1"], 1, 1)
    await writer.writer.close(Lines())


async def test_until_the_next_sink_can_be_opened_the_old_one_is_used() -> None:
    first, second = Lines(), Lines(error=OSError(2, "no such directory"))
    writer = Writer(first)
    writer.writer.use(second)
    writer.writer.add(1)
    await until(lambda: first.lines == ["1"])
    await until(lambda: "no such directory" in writer.troubles)
    second.error = None
    await until(lambda: second.opened == 1)
    writer.writer.add(2)
    await until(lambda: second.lines == ["2"])
    assert writer.troubles[-1] is None
    await writer.writer.close(Lines())


async def test_what_the_sink_never_took_goes_to_the_last_one() -> None:
    sink, last = Lines(), Lines()
    writer = Writer(sink)
    sink.error = OSError(28, "no space")
    for number in range(10):
        writer.writer.add(number)
    with capture_logs() as logged:
        await writer.writer.close(last)
    assert last.lines == numbers(10)
    assert "lines were not written" in [line["event"] for line in logged]


async def test_a_sink_that_hangs_does_not_keep_the_program_from_ending(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(line_writer, "CLOSE_SECONDS", 0.1)
    sink, last = Lines(), Lines()
    writer = Writer(sink)
    sink.gate.clear()
    writer.writer.add(1)
    await writer.writer.close(last)
    assert last.lines == ["1"]
    sink.gate.set()
