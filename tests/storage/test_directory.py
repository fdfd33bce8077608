import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from proxy.core.errors import ConfigError
from proxy.storage.directory import LAYOUT, Directory
from tests.leaks import opened_below


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Directory]:
    directory = Directory(tmp_path / "cache")
    yield directory
    directory.close()


def everything(root: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else None
        for path in sorted(root.rglob("*"))
    }


def test_two_processes_cannot_share_a_directory(directory: Directory, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in use by another Millpond"):
        Directory(tmp_path / "cache")
    directory.close()
    Directory(tmp_path / "cache").close()


def test_a_directory_that_cannot_be_written() -> None:
    with pytest.raises(ConfigError, match=r"storage.path: /proc/none cannot be used"):
        Directory(Path("/proc/none"))


def test_a_refusal_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/millpond.json").write_text("{}")
    with pytest.raises(ConfigError):
        Directory(tmp_path / "cache")
    assert not opened_below(tmp_path)


def test_a_directory_that_is_refused_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/quarantine").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not a link"):
        Directory(tmp_path / "cache")
    assert not opened_below(tmp_path)


def test_directories_that_others_could_enter_are_closed_to_them(tmp_path: Path) -> None:
    for name in ("spool", "blobs", "blobs/sha256"):
        (tmp_path / name).mkdir()
        (tmp_path / name).chmod(0o777)
    Directory(tmp_path).close()
    for name in ("spool", "blobs", "blobs/sha256"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_a_newer_layout_is_refused_and_not_touched(tmp_path: Path) -> None:
    (tmp_path / "millpond.json").write_text(json.dumps({"layout": LAYOUT + 1}))
    (tmp_path / "blobs").mkdir()
    before = everything(tmp_path)
    with pytest.raises(
        ConfigError, match=rf"newer Millpond \(layout {LAYOUT + 1}, this one knows {LAYOUT}"
    ):
        Directory(tmp_path)
    assert everything(tmp_path) == before


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"layout": "2"}', "\x00"])
def test_a_version_that_cannot_be_read_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / "millpond.json").write_text(content)
    with pytest.raises(ConfigError, match="does not contain the layout's version"):
        Directory(tmp_path)


def test_the_first_layout_is_migrated(tmp_path: Path) -> None:
    (tmp_path / "blobs/sha256").mkdir(parents=True)
    (tmp_path / "blobs/sha256/abc").write_bytes(b"kept")
    Directory(tmp_path).close()
    assert json.loads((tmp_path / "millpond.json").read_text()) == {"layout": LAYOUT}
    assert (tmp_path / "blobs/sha256/abc").read_bytes() == b"kept"


@pytest.mark.parametrize("name", ["spool", "quarantine", "blobs", "blobs/sha256"])
def test_a_directory_that_leads_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("not ours")
    link = tmp_path / "cache" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    with pytest.raises(ConfigError, match="it must be a directory, not a link"):
        Directory(tmp_path / "cache")
    assert (elsewhere / "file").read_text() == "not ours"


def test_the_root_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "cache").symlink_to(tmp_path / "disk")
    Directory(tmp_path / "cache").close()
    assert (tmp_path / "disk/blobs/sha256").is_dir()


@pytest.mark.parametrize(
    ("file_mode", "directories", "files"), [(0o600, 0o700, 0o600), (0o640, 0o750, 0o640)]
)
def test_modes_are_as_set_whatever_the_umask(
    tmp_path: Path, file_mode: int, directories: int, files: int
) -> None:
    for umask in (0o000, 0o077):
        before = os.umask(umask)
        try:
            directory = Directory(tmp_path / "cache", file_mode=file_mode)
            os.close(directory.create(f"made{umask}", directory.spool))
            directory.write_index(b"{}")
        finally:
            os.umask(before)
        for name in ("spool", "blobs", "blobs/sha256", "quarantine"):
            assert (tmp_path / "cache" / name).stat().st_mode & 0o777 == directories
        for name in (f"spool/made{umask}", "index.json"):
            assert (tmp_path / "cache" / name).stat().st_mode & 0o777 == files
        directory.close()


def test_a_file_is_replaced_whole_or_not_at_all(
    directory: Directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory.write_index(b"first")

    def fails(*_: object, **__: object) -> None:
        raise OSError(5, "Input/output error")

    for call in ("fsync", "rename"):
        with monkeypatch.context() as patched:
            patched.setattr(os, call, fails)
            with pytest.raises(OSError, match="Input/output"):
                directory.write_index(b"second")
        assert directory.read_index() == b"first"
        assert not (tmp_path / "cache/index.json.new").exists()
    directory.write_index(b"third")
    assert directory.read_index() == b"third"


def test_a_file_is_synced_before_its_rename_and_its_directory_after(
    directory: Directory, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, rename = os.fsync, os.rename

    def synced(fd: int) -> None:
        sync(fd)
        done.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")

    def renamed(source: str, target: str, **directories: int) -> None:
        rename(source, target, **directories)
        done.append("rename")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "rename", renamed)
    directory.write_index(b"{}")
    assert done == ["file", "rename", "directory"]
