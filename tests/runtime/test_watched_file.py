"""Files that settings name: read again when they change, kept while they cannot be read."""

import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from proxy.core.errors import ConfigError
from proxy.runtime import watched_file
from proxy.runtime.watched_file import WatchedFile

LOST = "file not reloaded, its last content stays in force"


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that may be looked at without a pause."""
    monkeypatch.setattr(watched_file, "CHECK_SECONDS", 0.0)
    file = tmp_path / "file"
    file.write_text("1")
    return file


def number(text: bytes) -> int:
    return int(text)


def replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.rename(path)


def test_a_file_that_is_written_in_place_counts_once_it_rests(path: Path) -> None:
    watched = WatchedFile(path, number)
    assert watched.value == 1
    assert not watched.refresh()
    path.write_text("")
    assert not watched.refresh()
    path.write_text("22")
    assert not watched.refresh(), "it may be half written"
    assert watched.refresh()
    assert watched.value == 22
    path.write_text("022")
    assert not any(watched.refresh() for _ in range(3)), "it says the same"


def test_a_file_that_is_replaced_counts_at_once(path: Path) -> None:
    os.utime(path, ns=(1, 1))
    watched = WatchedFile(path, number)
    assert not watched.has_changed()
    new = path.with_suffix(".new")
    new.write_text("2")  # of the same size
    os.utime(new, ns=(1, 1))
    new.rename(path)
    assert watched.has_changed()
    assert watched.has_changed(), "until it is read"
    assert watched.refresh()
    assert watched.value == 2
    assert not watched.has_changed()


def test_the_last_content_counts_while_it_cannot_be_read_and_that_is_said_once(path: Path) -> None:
    watched = WatchedFile(path, number)
    for spoil in (lambda: path.write_text("x"), lambda: replace(path, "y"), path.unlink):
        with capture_logs() as lines:
            spoil()
            assert not any(watched.refresh() for _ in range(4))
        assert watched.value == 1
        assert [line["event"] for line in lines] == [LOST]
        assert str(path) in lines[0]["error"]
    path.write_text("333")
    assert any(watched.refresh() for _ in range(3))
    assert watched.value == 333


def test_a_file_is_looked_at_ten_times_a_second(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    watched = WatchedFile(path, number)
    assert watched_file.CHECK_SECONDS == 0.1
    assert not watched.has_changed()
    replace(path, "2")
    watched._next_check = float("inf")
    assert not watched.has_changed()


def test_a_file_has_a_limit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watched_file, "MAX_BYTES", 10)
    path.write_text("1" * 11)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        WatchedFile(path, number)


def test_a_file_that_is_wrong_from_the_start_is_an_error(path: Path) -> None:
    for text in ("x", None):
        path.write_text(text) if text else path.unlink()
        with pytest.raises(ConfigError, match=str(path)):
            WatchedFile(path, number)
