"""The cache directory: locked by one process, of a known layout, without links to the outside.

``oci-layout``, ``index.json`` and ``blobs/<algorithm>/<hex>`` are an OCI image layout (image-spec
``image-layout.md``). Beside them are ``spool/`` (downloads in progress), ``quarantine/`` (corrupt
content), ``index/`` (rows), ``lock`` and ``millpond.json`` (the layout's version).
"""

import errno
import fcntl
import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from proxy.core.errors import ConfigError, StorageInUse

LAYOUT: Final = 3
"""Version of the layout. 2 had an index of several files, which ``index.layout2`` converts."""

ALGORITHMS: Final = ("sha256", "sha512")
_VERSION_FILE: Final = "millpond.json"
_INDEX_FILE: Final = "index.json"
OPEN_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

log = structlog.get_logger(__name__)


class Directory:
    """Descriptors of the directories; every file is named relative to one of them.

    ``file_mode`` 0600 keeps everything to this user, 0640 lets the group read.
    """

    def __init__(self, root: Path, *, file_mode: int = 0o600) -> None:
        """Prepare ``root`` and lock it. Raises ``ConfigError`` with the reason if that fails."""
        self.root = root
        self.file_mode = file_mode
        self._mode = 0o700 | (file_mode & 0o040 and 0o050)
        self._opened: list[int] = []
        try:
            self._lock()
        except OSError as error:
            self.close()
            raise ConfigError(
                f"storage.path: {error.filename or root} cannot be used: {_reason(error)}"
            ) from None
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        """Unlock the directory."""
        while self._opened:
            os.close(self._opened.pop())

    def create(self, name: str, directory: int) -> int:
        """Return the descriptor of a new file. Raises ``OSError``."""
        flags = os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, self.file_mode, dir_fd=directory)
        if self.file_mode != 0o600:
            os.fchmod(fd, self.file_mode)  # whatever the umask
        return fd

    def read_index(self) -> bytes:
        """Return the content of ``index.json``. Blocks. Raises ``OSError``."""
        return self._read(_INDEX_FILE)

    def write_index(self, content: bytes | bytearray) -> None:
        """Replace ``index.json`` durably. Blocks. Raises ``OSError``."""
        self.replace(_INDEX_FILE, content)

    def replace(self, name: str, content: bytes | bytearray) -> None:
        """Replace the file ``name`` in the root durably. Raises ``OSError``."""
        temporary = f"{name}.new"
        remove(temporary, self.fd)
        fd = self.create(temporary, self.fd)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
            os.fsync(self.fd)
        except OSError:
            remove(temporary, self.fd)
            raise

    def _lock(self) -> None:
        self.root.mkdir(mode=self._mode, parents=True, exist_ok=True)
        self.fd = self._register(os.open(self.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        version = self._version()
        lock = os.open("lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        self._register(lock)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StorageInUse(
                f"storage.path: {self.root} is in use by another Millpond; "
                "give each its own directory, with --storage DIR"
            ) from None
        self.spool = self._within("spool", self.fd)
        self.quarantine = self._within("quarantine", self.fd)
        blobs = self._within("blobs", self.fd)
        self.blobs = {name: self._within(name, blobs) for name in ALGORITHMS}
        for leftover in os.listdir(self.spool):
            os.unlink(leftover, dir_fd=self.spool)
        self._write_if_missing("oci-layout", {"imageLayoutVersion": "1.0.0"})
        self._write_if_missing(_INDEX_FILE, {"schemaVersion": 2, "manifests": []})
        if version != LAYOUT:
            self._migrate(version)

    def _version(self) -> int | None:
        """Return the layout's version, None if there is none yet. Raises ``ConfigError``."""
        try:
            content = self._read(_VERSION_FILE)
        except FileNotFoundError:
            return None
        try:
            version = json.loads(content)["layout"]
        except (ValueError, LookupError, TypeError):
            version = None
        if not isinstance(version, int):
            raise ConfigError(
                f"storage.path: {self.root / _VERSION_FILE} does not contain the layout's version; "
                f'if this is the cache of this Millpond, make it {{"layout": {LAYOUT}}}'
            )
        if version > LAYOUT:
            raise ConfigError(
                f"storage.path: {self.root} was written by a newer Millpond (layout {version}, "
                f"this one knows {LAYOUT}); run that one, or choose another directory"
            )
        return version

    def _read(self, name: str) -> bytes:
        with os.fdopen(os.open(name, OPEN_FILE, dir_fd=self.fd), "rb") as file:
            return file.read()

    def _migrate(self, version: int | None) -> None:
        """Write the version, so that an older program refuses the directory."""
        if version is not None:
            log.info("layout migrated", directory=str(self.root), was=version, now=LAYOUT)
        try:
            self.replace(_VERSION_FILE, json.dumps({"layout": LAYOUT}).encode())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            log.warning("the layout's version cannot be stored yet", error=str(error))

    def _within(self, name: str, directory: int) -> int:
        """Return the descriptor of a directory inside, created if missing; never a link's."""
        with suppress(FileExistsError):
            os.mkdir(name, self._mode, dir_fd=directory)
        fd = self._register(os.open(name, _OPEN_DIRECTORY, dir_fd=directory))
        if os.fstat(fd).st_mode & 0o777 != self._mode:
            os.fchmod(fd, self._mode)
        return fd

    def _write_if_missing(self, name: str, document: dict[str, object]) -> None:
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except FileNotFoundError:
            self.replace(name, json.dumps(document).encode())

    def _register(self, fd: int) -> int:
        self._opened.append(fd)
        return fd


def remove(name: str, directory: int) -> None:
    """Remove a file if it exists. Raises ``OSError``."""
    with suppress(FileNotFoundError):
        os.unlink(name, dir_fd=directory)


def _reason(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return (
            "it must be a directory, not a link: the cache never leaves its directory; "
            "choose another one with --storage DIR"
        )
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk is full; make room on it, or choose another with --storage DIR"
    advice = "choose a directory that this user may write, with --storage DIR"
    return f"{error.strerror or error}; {advice}"
