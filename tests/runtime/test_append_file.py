"""A file of lines after full disks, rotation, crashes, and with odd files in its place."""

import errno
import os
from pathlib import Path

import pytest

from proxy.runtime.append_file import AppendFile
from tests.parts.mounts import Others, tmpfs

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="mounts a file system")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "audit.jsonl"


def opened(path: Path, max_size: int | None = None) -> AppendFile:
    file = AppendFile(path, max_size)
    file.open()
    return file


def test_lines_are_appended_and_only_the_owner_may_read_them(path: Path) -> None:
    opened(path).write([b"1\n", b"2\n"])
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    assert opened(path).write([b"3\n"]) == 1
    assert path.read_bytes() == b"1\n2\n3\n"
    assert path.stat().st_mode & 0o777 == 0o640, "a group that ships logs may read it"


def test_a_last_line_that_a_kill_tore_gets_its_line_end(path: Path) -> None:
    path.write_bytes(b'{"a":1}\n{"b"')
    opened(path).write([b'{"c":2}\n'])
    assert path.read_bytes() == b'{"a":1}\n{"b"\n{"c":2}\n'


@pytest.mark.parametrize("room", range(12))
def test_bytes_of_a_line_that_did_not_fit_are_cut_off(
    path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    file, real = opened(path), os.write
    lines = [b"abc\n", b"def\n", b"ghi\n"]
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:room]))
    if room < 4:
        with pytest.raises(OSError, match="No space left"):
            file.write(lines)
        written = 0
    else:
        written = file.write(lines)
    monkeypatch.undo()
    assert path.read_bytes() == b"".join(lines[:written])
    file.write(lines[written:])
    assert path.read_bytes() == b"".join(lines)


def test_in_an_append_only_file_the_torn_line_gets_a_line_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(fd: int, size: int) -> None:
        raise OSError(errno.EPERM, "append only")

    file, real = opened(path), os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:6]))
    monkeypatch.setattr(os, "ftruncate", refuse)
    assert file.write([b"abc\n", b"def\n"]) == 1
    monkeypatch.undo()
    file.write([b"def\n"])
    assert path.read_bytes() == b"abc\nde\ndef\n"


def test_a_file_that_became_too_large_is_renamed(path: Path) -> None:
    file = opened(path, max_size=8)
    for number in range(5):
        file.write([b"line%d\n" % number])
    assert path.read_bytes() == b"line4\n"
    assert path.with_name("audit.jsonl.1").read_bytes() == b"line3\n"


def test_a_renamed_file_whose_successor_cannot_be_opened_is_tried_again(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EMFILE, "too many files")

    file = opened(path, max_size=8)
    file.write([b"line0\n"])
    monkeypatch.setattr(os, "open", refuse)
    for _ in range(2):
        with pytest.raises(OSError, match="too many"):
            file.write([b"line1\n"])
    monkeypatch.undo()
    file.write([b"line1\n"])
    assert path.read_bytes() == b"line1\n"


def test_what_is_no_file_is_refused_at_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for path in (pipe, tmp_path, tmp_path / "missing" / "audit.jsonl"):
        with pytest.raises(OSError):  # noqa: PT011 - which one depends on the system
            AppendFile(path).open()


def test_a_file_that_was_closed_is_opened_again(path: Path) -> None:
    file = opened(path)
    file.close()
    file.write([b"1\n"])
    assert path.read_bytes() == b"1\n"


@needs_root
def test_a_full_disk_gets_whole_lines_only(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", 64 * 1024) as disk:
        file, others = opened(disk / "audit.jsonl"), Others(disk)
        others.take_all()
        lines = [b"%d" % number + b"x" * 1000 + b"\n" for number in range(9)]
        others.leave(8192)
        written = file.write(lines)
        with pytest.raises(OSError, match="No space left"):
            file.write(lines[written:])
        assert 0 < written < 9
        assert (disk / "audit.jsonl").read_bytes() == b"".join(lines[:written])
        others.leave(32 * 1024)
        file.write(lines[written:])
        assert (disk / "audit.jsonl").read_bytes() == b"".join(lines)
        file.close()
