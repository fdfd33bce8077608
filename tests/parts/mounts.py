"""File systems of a test's own, small enough to fill, or with a plug to pull. Needs root."""

import contextlib
import fcntl
import itertools
import os
import struct
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.parts.process import command, wait_until

_SHUTDOWN: Final = 0x8004587D  # EXT4_IOC_SHUTDOWN: linux/fs/ext4/ext4.h
_WITHOUT_FLUSHING_THE_LOG: Final = struct.pack("I", 2)


@contextmanager
def tmpfs(place: Path, size: int) -> Iterator[Path]:
    """Give an empty file system of `size` bytes at `place`."""
    place.mkdir(exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size},mode=0700", "tmpfs", str(place))
    try:
        yield place
    finally:
        _run("umount", "--lazy", str(place))


class Disk:
    """An ext4 in a file. What was not synced is lost when its power goes."""

    def __init__(self, place: Path, size: int) -> None:
        """Make it and mount it at `place`; `size` is in bytes."""
        self.place = place
        self._images = (place.with_suffix(f".{number}.img") for number in itertools.count())
        self._image = next(self._images)
        with self._image.open("wb") as image:
            image.truncate(size)
        _run("mkfs.ext4", "-q", "-F", "-b", "4096", str(self._image))
        place.mkdir()
        self._mount()

    def cut(self) -> None:
        """Take its power away: from now on nothing is read or written."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _WITHOUT_FLUSHING_THE_LOG)
        finally:
            os.close(fd)

    def restore(self) -> None:
        """Power again, as after a reboot; nobody may have a file on it open.

        A copy of the image is mounted, never the image itself. Every process that makes a mount
        namespace (Podman, containerd, `unshare`) copies our mount into it, and the kernel keeps
        the file system that was shut down for as long as that namespace lives. `mount` would find
        its loop device and give us the same one again, where every read fails with EIO.
        """
        self.close()
        dead, self._image = self._image, next(self._images)
        _run("cp", "--sparse=always", str(dead), str(self._image))
        dead.unlink()
        self._mount()

    def close(self) -> None:
        """Unmount it, as soon as nobody looks at it any more."""
        words = [command("umount"), str(self.place)]
        wait_until(lambda: subprocess.run(words, check=False).returncode == 0, "the disk's users")

    def _mount(self) -> None:
        # The journal is committed every second, so that names get to the disk before bytes do.
        _run("mount", "-o", "loop,commit=1", str(self._image), str(self.place))


class Others:
    """Those who share a file system with the cache, and leave as much of it as they please."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._file = place / "others"
        self._file.touch()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def free(self) -> int:
        """How many bytes are left for everybody."""
        status = os.statvfs(self._place)
        return status.f_bavail * status.f_frsize

    def take_all(self) -> None:
        """Fill it to the brim."""
        with self._file.open("ab", buffering=0) as file:
            for size in (1024**2, 4096):
                with contextlib.suppress(OSError):
                    while True:
                        file.write(bytes(size))

    def leave(self, room: int) -> None:
        """Make it so that about `room` bytes are free, if they have as many to give."""
        size = self._file.stat().st_size
        os.truncate(self._file, max(0, size - max(0, room - self.free)))

    @contextmanager
    def restless(self, rooms: Sequence[int]) -> Iterator[None]:
        """Fill it, again and again, leaving each of `rooms` in turn for a moment."""
        self._ending.clear()
        self._thread = threading.Thread(target=self._come_and_go, args=(rooms,))
        self._thread.start()
        try:
            yield
        finally:
            self._ending.set()
            self._thread.join()

    def _come_and_go(self, rooms: Sequence[int]) -> None:
        for room in itertools.cycle(rooms):
            self.take_all()
            if self._ending.wait(0.05):
                return
            self.leave(room)
            if self._ending.wait(0.02):
                return


def _run(program: str, *words: str) -> None:
    subprocess.run([command(program), *words], check=True)
