import os
import sys
import threading
from pathlib import Path
from subprocess import run

import pytest

from proxy.access.files import locked, read_text, write_private
from proxy.core.errors import ConfigError
from proxy.runtime import watched_file


def test_what_is_written_is_for_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_private(path, "x")
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o664)
    write_private(path, "y")
    assert path.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match="No space left"):
        write_private(path, "new")
    assert path.read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_files_are_bounded_and_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    monkeypatch.setattr(watched_file, "MAX_BYTES", 10)
    path.write_bytes(b"x" * 11)
    with pytest.raises(ConfigError, match="larger than"):
        read_text(path)
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_text(path)
    with pytest.raises(ConfigError, match="No such file"):
        read_text(tmp_path / "none")


def test_one_command_changes_a_file_at_a_time(tmp_path: Path) -> None:
    path, waits = tmp_path / "file", threading.Event()

    def second() -> None:
        with locked(path):
            waits.set()

    with locked(path):
        thread = threading.Thread(target=second)
        thread.start()
        assert not waits.wait(0.1)
    thread.join(60)
    assert waits.is_set()


def test_a_file_behind_a_link_is_replaced_and_not_the_link(tmp_path: Path) -> None:
    real, link = tmp_path / "real" / "htpasswd", tmp_path / "htpasswd"
    real.parent.mkdir()
    real.write_text("old")
    link.symlink_to(real)
    with locked(link):
        write_private(link, "new")
    assert link.is_symlink()
    assert real.read_text() == "new"


def test_files_are_utf8_whatever_the_locale_says(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from proxy.access.files import write_private\n"
        "write_private(Path(sys.argv[1]), chr(233))"
    )
    locale = {"PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "POSIX"}
    run([sys.executable, "-c", program, str(tmp_path / "file")], env=locale, check=True)
    assert (tmp_path / "file").read_bytes() == b"\xc3\xa9"
