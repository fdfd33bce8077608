"""Writes the changed files of a recipe below a root, atomically and with backups."""

import difflib
import os
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from proxy.cli.clients.merging import Unreadable, merge
from proxy.cli.clients.recipes import SECRET, File
from proxy.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Change:
    """A file that needs a change; ``before`` None: there is no file."""

    path: Path
    before: str | None
    after: str
    mode: int

    def diff(self) -> str:
        """Return the change as a unified diff."""
        before = (self.before or "").splitlines(keepends=True)
        source = "/dev/null" if self.before is None else str(self.path)
        lines = difflib.unified_diff(
            before, self.after.splitlines(keepends=True), source, str(self.path)
        )
        return "".join(line if line.endswith("\n") else f"{line}\n" for line in lines)


class Tree:
    """The file system below a directory, ``/`` for this machine's."""

    def __init__(self, root: Path) -> None:
        self._root = root.resolve()

    def read(self, path: str) -> str | None:
        """Return the text of a file, None if there is none. Raises ``ConfigError``."""
        place = self._place(path)
        try:
            return place.read_bytes().decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError:
            raise ConfigError(f"{place}: not UTF-8 text") from None
        except OSError as error:
            raise ConfigError(f"{place}: cannot be read: {error.strerror}") from None

    def changes(self, files: tuple[File, ...]) -> list[Change]:
        """Return what has to change. Raises ``ConfigError`` for a file that cannot be merged."""
        return list(self._changes(files))

    def _changes(self, files: tuple[File, ...]) -> Iterator[Change]:
        for file in files:
            place, before = self._place(file.path), self.read(file.path)
            try:
                after = merge(file.format, before or "", file.text)
            except Unreadable as error:
                raise ConfigError(f"{place}: {error}; nothing was written") from None
            if after != before:
                yield Change(place, before, after, file.mode)

    def _place(self, path: str) -> Path:
        """Return where a file is; links are followed. Raises ``ConfigError`` beyond the root."""
        place = (self._root / path.lstrip("/")).resolve()
        if not place.is_relative_to(self._root):
            raise ConfigError(f"{self._root}{path}: is a link out of {self._root}")
        return place


def write(change: Change, time: str) -> Path | None:
    """Write a file and return the backup of the one before, ``….bak-<time>``.

    Raises ``ConfigError``. The file keeps its mode and owner, but one with a
    password is for its owner only.
    """
    path = change.path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if change.before is None:
            _replace(path, change.after, change.mode)
            return None
        state = path.stat()
        mode = state.st_mode & 0o777
        backup = path.with_name(f"{path.name}.bak-{time}")
        _replace(backup, change.before, mode, state)
        _replace(path, change.after, mode & SECRET if change.mode == SECRET else mode, state)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None
    return backup


def _replace(path: Path, text: str, mode: int, owner: os.stat_result | None = None) -> None:
    """Replace a file by a temporary one, once that is complete and synced."""
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as file:
            os.fchmod(descriptor, mode)
            if owner is not None:
                with suppress(PermissionError):
                    os.fchown(descriptor, owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        Path(name).rename(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
