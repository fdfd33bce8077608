"""Reads the files of a bundle, a layout or an archive, none of which can be trusted.

A tree is a directory, a tar file, or a tar file in several parts. Only regular files are accepted.
A link, a device, an entry outside the tree, and two entries with one name are refused: no tool
writes them into an image layout, and each has been used for an attack.
"""

import errno
import os
import stat
import tarfile
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final, Protocol, Self

from proxy.core.errors import ConfigError, RequestInvalid

MAX_FILES: Final = 4_000_000
MAX_NAME: Final = 512
MAX_HEADER: Final = 1024 * 1024
"""Maximum size in bytes of a header in an archive: it may claim gigabytes."""

_DAMAGED: Final = (tarfile.TarError, EOFError, ValueError, IndexError)
"""What ``tarfile`` raises for a wrong archive; the last for a sparse file that is cut off."""

_DIRECTORY: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_COMPRESSED: Final = (
    (b"\x1f\x8b", "gunzip"),
    (b"\x28\xb5\x2f\xfd", "zstd -d"),
    (b"BZh", "bunzip2"),
)


class TreeFile(Protocol):
    """An open file of a tree; ``size`` in bytes."""

    size: int

    def read(self, start: int, stop: int) -> bytes:
        """Return bytes ``start`` to ``stop``, fewer at the end. Blocks. Raises ``OSError``."""

    def close(self) -> None:
        """Close the file."""


class Tree(Protocol):
    """Files by their names, which have ``/`` between their components. Close it when done."""

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names directly in a folder; none if there is no such folder."""

    def open(self, name: str) -> TreeFile | None:
        """Return a file, None if there is none. Raises ``RequestInvalid`` for anything else."""

    def is_folder(self, name: str) -> bool:
        """Return True if a name is that of a folder."""

    def close(self) -> None:
        """Close all open files."""


def open_tree(path: Path) -> Tree:
    """Return the tree at a path: a directory, a tar file, or the first of its parts.

    Raises ``ConfigError`` if it cannot be read, ``RequestInvalid`` for an archive with forbidden
    entries.
    """
    try:
        if path.is_dir():
            return DirectoryTree(path)
        return TarTree(parts_of(path))
    except OSError as error:
        raise ConfigError(f"{error.filename or path} cannot be read: {error.strerror}") from None


def parts_of(path: Path) -> list[Path]:
    """Return the files that make up an archive: one, or ``NAME.001``, ``NAME.002`` and so on.

    The first part may be given, or the name without the number. Raises ``RequestInvalid`` if one is
    missing in between, ``FileNotFoundError`` if there is none.
    """
    name = path.name
    if name.endswith(".001"):
        path = path.with_name(name.removesuffix(".001"))
    elif path.exists():
        return [path]
    found = {
        int(one.suffix[1:]): one
        for one in path.parent.glob(f"{_literal(path.name)}.*")
        if one.suffix[1:].isdecimal()
    }
    if not found:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if missing := sorted(set(range(1, max(found) + 1)) - found.keys()):
        raise RequestInvalid(f"{path}.{missing[0]:03}: this part is missing")
    return [found[number] for number in sorted(found)]


def read_file(tree: Tree, name: str, limit: int) -> bytes | None:
    """Return the content of a small file, None if there is none. Raises ``RequestInvalid``."""
    file = tree.open(name)
    if file is None:
        return None
    try:
        if file.size > limit:
            raise RequestInvalid(f"{name}: longer than {limit} bytes")
        return file.read(0, file.size)
    finally:
        file.close()


class DirectoryTree:
    """The files of a directory; no link is followed, at any depth."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names in a folder."""
        with ExitStack() as stack:
            fd = self._folder(folder, stack)
            yield from () if fd is None else sorted(os.listdir(fd))  # noqa: PTH208 - of a descriptor

    def open(self, name: str) -> TreeFile | None:
        """Return a file, None if there is none."""
        folder, _, last = checked(name).rpartition("/")
        with ExitStack() as stack:
            parent = self._folder(folder, stack)
            if parent is None:
                return None
            try:
                fd = os.open(last, _FILE, dir_fd=parent)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _unreadable(name, error) from None
        return _DescriptorFile(fd, name)

    def is_folder(self, name: str) -> bool:
        """Return True if a name is that of a folder; a link is none."""
        folder, _, last = checked(name).rpartition("/")
        with ExitStack() as stack:
            parent = self._folder(folder, stack)
            if parent is None:
                return False
            try:
                mode = os.stat(last, dir_fd=parent, follow_symlinks=False).st_mode
            except FileNotFoundError:
                return False
            return stat.S_ISDIR(mode)

    def modified_at(self, name: str) -> float:
        """Return when a file was modified, in Unix seconds; 0 if there is none."""
        folder, _, last = checked(name).rpartition("/")
        with ExitStack() as stack:
            parent = self._folder(folder, stack)
            try:
                return 0.0 if parent is None else os.stat(last, dir_fd=parent).st_mtime
            except FileNotFoundError:
                return 0.0

    def close(self) -> None:
        """Close the directory."""
        os.close(self._fd)

    def _folder(self, folder: str, stack: ExitStack) -> int | None:
        fd = self._fd
        for part in checked(folder).split("/") if folder else ():
            try:
                fd = os.open(part, _DIRECTORY, dir_fd=fd)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _unreadable(folder, error) from None
            stack.callback(os.close, fd)
        return fd


class TarTree:
    """The files of a tar archive, in one or several parts. The archive is read once, for names."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._parts = JoinedFiles.opened(paths)
        try:
            self._refuse_compressed(paths[0])
            self.files: Final = self._scan(str(paths[0]))
            """Offset and size in bytes of each file, in the order of the archive."""
        except BaseException:
            self._parts.close()
            raise
        self._folders: dict[str, list[str]] = {}
        for name in sorted(self.files):
            folder, _, last = name.rpartition("/")
            self._folders.setdefault(folder, []).append(last)

    def names(self, folder: str) -> Iterator[str]:
        """Yield the names of the files in a folder, and of the folders in it."""
        seen = set(self._folders.get(folder, ()))
        prefix = f"{folder}/" if folder else ""
        for other in self._folders:
            if other.startswith(prefix) and other != folder:
                seen.add(other[len(prefix) :].partition("/")[0])
        yield from sorted(seen)

    def open(self, name: str) -> TreeFile | None:
        """Return a file, None if there is none."""
        place = self.files.get(checked(name))
        return None if place is None else _TarFile(self._parts, *place)

    def is_folder(self, name: str) -> bool:
        """Return True if a name is that of a folder with files."""
        return any(one == name or one.startswith(f"{name}/") for one in self._folders)

    def close(self) -> None:
        """Close the parts."""
        self._parts.close()

    def _refuse_compressed(self, path: Path) -> None:
        head = self._parts.pread(0, 4)
        for magic, tool in _COMPRESSED:
            if head.startswith(magic):
                raise RequestInvalid(f"{path}: it is compressed; first: {tool}")

    def _scan(self, where: str) -> dict[str, tuple[int, int]]:
        """Return offset and size of every file. Raises ``RequestInvalid``."""
        files: dict[str, tuple[int, int]] = {}
        folders: set[str] = set()
        try:
            with tarfile.open(fileobj=self._parts, mode="r:") as archive:  # type: ignore[call-overload]
                for member in archive:
                    archive.members = []  # else it keeps them all
                    name = checked(member.name.removeprefix("./").rstrip("/") or ".")
                    if member.isdir():
                        folders.add(name)
                        continue
                    if not member.isreg() or member.issparse():
                        raise RequestInvalid(f"{where}: {name}: a {_kind(member)}, not a file")
                    if name in files:
                        raise RequestInvalid(f"{where}: {name}: twice in the archive")
                    if member.offset_data + member.size > self._parts.size:
                        raise RequestInvalid(f"{where}: {name}: cut off; the archive is truncated")
                    files[name] = member.offset_data, member.size
                    if len(files) > MAX_FILES:
                        raise RequestInvalid(f"{where}: more than {MAX_FILES:,} files")
        except _DAMAGED as error:
            raise RequestInvalid(f"{where}: no tar archive, or a damaged one: {error}") from None
        if not files:
            raise RequestInvalid(f"{where}: an archive without files")
        if both := folders & files.keys():
            raise RequestInvalid(f"{where}: {min(both)}: both a file and a folder")
        return files


class JoinedFiles:
    """Several files as one, in the way that ``tarfile`` reads; ``size`` of all in bytes."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = list(fds)
        self._starts = [0]
        for fd in fds:
            self._starts.append(self._starts[-1] + os.fstat(fd).st_size)
        self.size = self._starts[-1]
        self._at = 0

    @classmethod
    def opened(cls, paths: Sequence[Path]) -> Self:
        """Open the files. Raises ``OSError``, ``RequestInvalid`` for what is no regular file."""
        fds: list[int] = []
        try:
            for path in paths:
                fds.append(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
                _check_regular(fds[-1], path)
            return cls(fds)
        except BaseException:
            for fd in fds:
                os.close(fd)
            raise

    def pread(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at an offset, fewer only at the end. Raises ``OSError``."""
        pieces: list[bytes] = []
        while size > 0 and offset < self.size:
            part = bisect_right(self._starts, offset) - 1
            most = min(size, self._starts[part + 1] - offset)
            piece = os.pread(self._fds[part], most, offset - self._starts[part])
            if not piece:
                break
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises ``ValueError`` for a size that no header has."""
        if not 0 <= size <= MAX_HEADER:
            raise ValueError("a header has a wrong size")
        piece = self.pread(self._at, size)
        self._at += len(piece)
        return piece

    def seek(self, offset: int) -> int:
        """Go to an offset."""
        self._at = offset
        return offset

    def tell(self) -> int:
        """Return the offset of the next byte."""
        return self._at

    def close(self) -> None:
        """Close all files."""
        while self._fds:
            os.close(self._fds.pop())


class _DescriptorFile:
    def __init__(self, fd: int, name: str) -> None:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(fd)
            raise RequestInvalid(f"{name}: not a regular file")
        self._fd = fd
        self.size = status.st_size

    def read(self, start: int, stop: int) -> bytes:
        return os.pread(self._fd, max(0, stop - start), start)

    def close(self) -> None:
        os.close(self._fd)


class _TarFile:
    def __init__(self, parts: JoinedFiles, offset: int, size: int) -> None:
        self._parts = parts
        self._offset = offset
        self.size = size

    def read(self, start: int, stop: int) -> bytes:
        return self._parts.pread(self._offset + start, min(stop, self.size) - start)

    def close(self) -> None:
        """Do nothing: the archive stays open."""


def checked(name: str) -> str:
    """Return a name that stays within its tree. Raises ``RequestInvalid`` for another one."""
    parts = name.split("/")
    is_whole = name == "." or not {"", ".", ".."} & set(parts)
    if not is_whole or len(name) > MAX_NAME or "\\" in name or not name.isprintable():
        raise RequestInvalid(f"{name[:80]!r}: a name that leads out of the archive, or is no name")
    return name


def _check_regular(fd: int, path: Path) -> None:
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        raise RequestInvalid(f"{path}: not a regular file; write it to a disk first")


def _kind(member: tarfile.TarInfo) -> str:
    if member.issym() or member.islnk():
        return "link"
    if member.issparse():
        return "sparse file"
    return "device" if member.isdev() else "special entry"


def _unreadable(name: str, error: OSError) -> RequestInvalid:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return RequestInvalid(f"{name}: a link or no folder; links are never followed")
    return RequestInvalid(f"{name}: cannot be read: {error.strerror}")


def _literal(name: str) -> str:
    """Return a pattern of ``glob`` that matches a name as it is."""
    return "".join(f"[{char}]" if char in "*?[" else char for char in name)
