"""Writes the files of a bundle: into a tar file, into one in several parts, or into a directory.

The name of an output ends in ``.partial`` until the output is complete and durable.
"""

import os
import tarfile
from pathlib import Path
from typing import BinaryIO, Final, Protocol

from proxy.core.errors import ConfigError

PARTIAL: Final = ".partial"
MIN_PART: Final = 1024 * 1024
_BLOCK: Final = 512
_END: Final = bytes(2 * _BLOCK)


class Sink(Protocol):
    """Writes files, one after the other. Blocks. Methods raise ``OSError``."""

    def begin(self, name: str, size: int) -> None:
        """Begin a file of ``size`` bytes."""

    def write(self, data: bytes | memoryview) -> None:
        """Write the next bytes of the file; all must be written before the next file begins."""

    def finish(self) -> list[Path]:
        """Make everything durable and give it its name; return what was written."""

    def discard(self) -> None:
        """Remove what was written. Does nothing after ``finish``."""


def open_sink(output: str, max_part: int | None) -> Sink:
    """Return the sink for an output: a name that ends in ``/``, or a directory, is a directory.

    ``max_part`` is the size in bytes of the largest part, None for one file. Raises ``ConfigError``
    if something is there already.
    """
    path = Path(output)
    if output.endswith("/") or path.is_dir():
        if max_part is not None:
            raise ConfigError("--max-part-size: a directory has no parts; name a file")
        if path.exists() and any(path.iterdir()):
            raise ConfigError(f"{path}: the directory is not empty")
        partial = _partial(path)
        if partial.exists() and any(partial.iterdir()):  # its files would be in the bundle
            raise ConfigError(f"{partial}: left by an export that was killed; remove it")
        return DirectorySink(path)
    taken = path if max_part is None else _part(path, 1)
    if taken.exists():
        raise ConfigError(f"{taken}: exists; choose another name, or remove it")
    return TarSink(path, max_part)


def put(sink: Sink, name: str, content: bytes) -> None:
    """Write a small file."""
    sink.begin(name, len(content))
    sink.write(content)


class TarSink:
    """A tar file. Its parts are one after the other the same archive: ``cat NAME.*`` joins them."""

    def __init__(self, path: Path, max_part: int | None) -> None:
        self._path = path
        self._max_part = max_part
        self._written: list[Path] = []
        self._file: BinaryIO | None = None
        self._room = 0
        self._padding = 0

    def begin(self, name: str, size: int) -> None:
        """Write a header."""
        self._write(bytes(self._padding))
        member = tarfile.TarInfo(name)
        member.size, member.mode = size, 0o644
        self._write(member.tobuf(tarfile.PAX_FORMAT))
        self._padding = -size % _BLOCK

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes of a file."""
        self._write(data)

    def finish(self) -> list[Path]:
        """Write the end of the archive, and rename its parts."""
        self._write(bytes(self._padding) + _END)
        self._close_part()
        final = [part.with_name(part.name.removesuffix(PARTIAL)) for part in self._written]
        for part, name in zip(self._written, final, strict=True):
            part.rename(name)
        _sync_directory(self._path.parent)
        self._written = []
        return final

    def discard(self) -> None:
        """Remove the parts."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for part in self._written:
            part.unlink(missing_ok=True)

    def _write(self, data: bytes | memoryview) -> None:
        rest = memoryview(data)
        while rest:
            if self._file is None or self._room == 0:
                self._next_part()
            assert self._file is not None
            piece = rest if self._max_part is None else rest[: self._room]
            self._file.write(piece)
            self._room -= len(piece)
            rest = rest[len(piece) :]

    def _next_part(self) -> None:
        self._close_part()
        path = self._path
        if self._max_part is not None:
            path = _part(path, len(self._written) + 1)
        path = _partial(path)
        self._file = path.open("wb", buffering=0)
        self._written.append(path)
        self._room = -1 if self._max_part is None else self._max_part

    def _close_part(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


class DirectorySink:
    """A directory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._partial = _partial(path)
        self._file: BinaryIO | None = None
        self._files: list[Path] = []
        self._partial.mkdir(parents=True, exist_ok=True)

    def begin(self, name: str, size: int) -> None:
        """Create a file."""
        del size
        self._close()
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)
        self._files.append(path)

    def write(self, data: bytes | memoryview) -> None:
        """Write bytes of a file."""
        assert self._file is not None
        self._file.write(data)

    def finish(self) -> list[Path]:
        """Give the directory its name."""
        self._close()
        for folder in {file.parent for file in self._files}:
            _sync_directory(folder)
        if self._path.exists():
            self._path.rmdir()  # it is empty
        self._partial.rename(self._path)
        _sync_directory(self._path.parent)
        self._files = []
        return [self._path]

    def discard(self) -> None:
        """Remove the files, and their folders if nothing else is in them."""
        if self._file is not None:
            self._file.close()
            self._file = None
        for file in self._files:
            file.unlink(missing_ok=True)
        folders = {parent for file in self._files for parent in file.parents}
        for folder in sorted(folders, key=lambda one: len(one.parts), reverse=True):
            if folder.is_relative_to(self._partial) and not any(folder.iterdir()):
                folder.rmdir()

    def _close(self) -> None:
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number:03}")


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}{PARTIAL}")


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
