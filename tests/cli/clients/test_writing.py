"""Files are put in place whole, with a backup, below the root and nowhere else."""

from pathlib import Path

import pytest

from proxy.cli.clients.merging import Format
from proxy.cli.clients.recipes import File
from proxy.cli.clients.writing import Tree, write
from proxy.core.errors import ConfigError

FILE = File("/etc/docker/daemon.json", Format.JSON, '{"registry-mirrors": ["http://a"]}\n')
SECRET = File("/etc/k3s.yaml", Format.YAML, "password: x\n", 0o600)


def test_a_new_file_gets_its_directories_and_its_mode(tmp_path: Path) -> None:
    [new, secret] = Tree(tmp_path).changes((FILE, SECRET))
    assert write(new, "now") is None
    assert write(secret, "now") is None
    place = tmp_path / "etc" / "docker" / "daemon.json"
    assert place.read_text() == FILE.text
    assert place.stat().st_mode & 0o777 == 0o644
    assert (tmp_path / "etc" / "k3s.yaml").stat().st_mode & 0o777 == 0o600
    assert Tree(tmp_path).changes((FILE, SECRET)) == []


def test_a_changed_file_keeps_its_mode_and_leaves_a_backup(tmp_path: Path) -> None:
    place = tmp_path / "etc" / "docker" / "daemon.json"
    place.parent.mkdir(parents=True)
    place.write_bytes(b'{"dns": ["10.0.0.1"]}\r\n')
    place.chmod(0o640)
    [change] = Tree(tmp_path).changes((FILE,))
    assert '-{"dns": ["10.0.0.1"]}' in change.diff()
    backup = write(change, "20261122T050000Z")
    assert backup == place.with_name("daemon.json.bak-20261122T050000Z")
    assert backup.read_bytes() == b'{"dns": ["10.0.0.1"]}\r\n'
    assert {each.stat().st_mode & 0o777 for each in (place, backup)} == {0o640}
    assert set(place.parent.iterdir()) == {place, backup}


def test_a_file_that_gets_a_password_is_closed_to_others(tmp_path: Path) -> None:
    place = tmp_path / "etc" / "k3s.yaml"
    place.parent.mkdir()
    place.write_text("a: 1\n")
    place.chmod(0o644)
    [change] = Tree(tmp_path).changes((SECRET,))
    write(change, "now")
    assert place.stat().st_mode & 0o777 == 0o600


def test_a_link_stays_and_its_file_is_changed(tmp_path: Path) -> None:
    folder = tmp_path / "etc" / "docker"
    folder.mkdir(parents=True)
    (tmp_path / "real.json").write_text("{}")
    (folder / "daemon.json").symlink_to("../../real.json")
    [change] = Tree(tmp_path).changes((FILE,))
    write(change, "now")
    assert (folder / "daemon.json").is_symlink()
    assert "http://a" in (tmp_path / "real.json").read_text()


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "etc").mkdir(parents=True)
    (root / "etc" / "docker").symlink_to(tmp_path)
    with pytest.raises(ConfigError, match="link out of"):
        Tree(root).changes((FILE,))


def test_one_file_that_cannot_be_read_stops_all(tmp_path: Path) -> None:
    place = tmp_path / "etc" / "docker" / "daemon.json"
    place.parent.mkdir(parents=True)
    place.write_text("{broken")
    with pytest.raises(ConfigError, match=r"daemon\.json: line 1, column 2.*nothing was written"):
        Tree(tmp_path).changes((SECRET, FILE))
    place.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        Tree(tmp_path).changes((FILE,))


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    place = tmp_path / "etc" / "docker" / "daemon.json"
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    [change] = Tree(tmp_path).changes((FILE,))
    (place.parent / "daemon.json.bak-now").mkdir()  # its backup has no place
    with pytest.raises(ConfigError, match="cannot be written"):
        write(change, "now")
    assert place.read_text() == "{}"
    assert {each.name for each in place.parent.iterdir()} == {"daemon.json", "daemon.json.bak-now"}
