"""Files that policies name: read again when they change, kept while they cannot be read."""

import os
from pathlib import Path

import pytest

from proxy.core.errors import ConfigError
from proxy.policies import files
from proxy.policies.files import WatchedFile


def number(text: bytes) -> int:
    return int(text)


def test_a_file_is_read_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
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


def test_the_last_content_counts_while_it_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    watched = WatchedFile(path, number)
    for spoil in (lambda: path.write_text("x"), path.unlink):
        spoil()
        assert not any(watched.refresh() for _ in range(3))
        assert watched.value == 1
    path.write_text("333")
    assert any(watched.refresh() for _ in range(3))
    assert watched.value == 333


def test_a_replaced_file_of_the_same_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    os.utime(path, ns=(1, 1))
    watched = WatchedFile(path, number)
    (tmp_path / "new").write_text("2")
    os.utime(tmp_path / "new", ns=(1, 1))
    (tmp_path / "new").rename(path)
    assert any(watched.refresh() for _ in range(3))
    assert watched.value == 2


def test_a_file_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 10)
    (tmp_path / "file").write_text("1" * 11)
    with pytest.raises(ConfigError, match="larger than 10 bytes"):
        WatchedFile(tmp_path / "file", number)
