"""Corrupt content, kept for inspection with a note about the damage."""

import os
from threading import Lock
from typing import Final

import structlog

from proxy.core.errors import StorageError
from proxy.core.names import Digest
from proxy.core.records import disk_bytes
from proxy.storage.directory import OPEN_FILE, Directory, remove

LIMIT: Final = 100
"""Files kept; the oldest is removed first."""

MAX_NOTE: Final = 1024 * 1024

log = structlog.get_logger(__name__)


class DiskQuarantine:
    """The files in ``quarantine/``. Every method blocks."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._one_at_a_time = Lock()
        self._bytes = 0
        self._is_measured = True
        self._measure()

    @property
    def bytes(self) -> int:
        """Disk bytes in use; measured again if that has failed."""
        if not self._is_measured:
            self._measure()
        return self._bytes

    def add(self, digest: Digest, note: str) -> str:
        """Move a blob here, with a note beside it unless it is empty; return its path.

        Raises ``StorageError``. A blob that cannot be moved is deleted, not served again.
        """
        with self._one_at_a_time:
            self._add(digest, note)
            self._measure()
        return str(self._directory.root / "quarantine" / digest.partition(":")[2])

    def notes(self) -> list[str]:
        """Return the notes beside the content. Handles every error."""
        with self._one_at_a_time:
            return [self._read(name) for name in self._names() if name.endswith(".json")]

    def empty(self) -> None:
        """Delete everything: valid content needs the space. Handles every error."""
        with self._one_at_a_time:
            for name in self._names():
                try:
                    remove(name, self._directory.quarantine)
                except OSError as error:
                    log.warning("quarantine cannot be emptied", file=name, error=str(error))
            self._measure()

    def _names(self) -> list[str]:
        """Return the names of all files, none if they cannot be listed."""
        try:
            return os.listdir(self._directory.quarantine)
        except OSError as error:
            log.warning("quarantine cannot be listed", error=str(error))
            return []

    def _add(self, digest: Digest, note: str) -> None:
        algorithm, _, name = digest.partition(":")
        here, there = self._directory.quarantine, self._directory.blobs[algorithm]
        try:
            self._make_room()
            os.rename(name, name, src_dir_fd=there, dst_dir_fd=here)
        except FileNotFoundError as error:
            raise StorageError(f"{digest} is gone") from error
        except OSError as error:
            try:
                remove(name, there)
            except OSError as again:
                raise StorageError(f"{digest} cannot be moved nor deleted: {again}") from again
            raise StorageError(f"{digest} could only be deleted: {error}") from error
        self._sync(here, there)
        try:
            remove(f"{name}.json", here)
            if note:
                with os.fdopen(self._directory.create(f"{name}.json", here), "w") as file:
                    file.write(note)
        except OSError as error:
            log.warning("a note cannot be written", digest=digest, error=str(error))

    def _read(self, name: str) -> str:
        """Return a note, empty if it cannot be read."""
        try:
            fd = os.open(name, OPEN_FILE, dir_fd=self._directory.quarantine)
            with os.fdopen(fd, "rb") as file:
                return file.read(MAX_NOTE).decode()
        except (OSError, UnicodeDecodeError) as error:
            log.warning("a note in quarantine cannot be read", file=name, error=str(error))
            return ""

    def _sync(self, *directories: int) -> None:
        """Make a rename durable; without it a power cut may bring the blob back to its place."""
        for directory in directories:
            try:
                os.fsync(directory)
            except OSError as error:
                log.warning("quarantine cannot be synced", error=str(error))

    def _make_room(self) -> None:
        names = [name for name in os.listdir(self._directory.quarantine) if "." not in name]
        if len(names) >= LIMIT:
            oldest = min(names, key=lambda name: self._status(name).st_ctime_ns)  # of the rename
            remove(oldest, self._directory.quarantine)
            remove(f"{oldest}.json", self._directory.quarantine)

    def _measure(self) -> None:
        try:
            names = os.listdir(self._directory.quarantine)
            self._bytes = sum(disk_bytes(self._status(name).st_size) for name in names)
            self._is_measured = True
        except OSError as error:
            if self._is_measured:
                log.warning("quarantine cannot be measured", error=str(error))
            self._is_measured = False

    def _status(self, name: str) -> os.stat_result:
        return os.stat(name, dir_fd=self._directory.quarantine, follow_symlinks=False)
