"""What lies in a cache directory, as the disk tells it. Knows nothing of the process."""

import hashlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_LENGTHS: Final = {"sha256": 64, "sha512": 128}


@dataclass(frozen=True)
class Look:
    """One look at `spool/` and `blobs/`; exact if nothing moved meanwhile."""

    bytes: int
    """What they take on the disk, in whole blocks."""
    held: dict[str, float]
    """Digests and since when (the time of their rename)."""
    spooled: dict[str, float]
    """Names in the spool, and when they were last written to."""


def look(storage: Path) -> Look:
    """Look at all files; whatever moves from spool to blobs meanwhile is counted once."""
    sizes: dict[int, int] = {}
    held: dict[str, float] = {}
    spooled: dict[str, float] = {}
    for entry, status in _files(storage / "spool"):
        sizes[status.st_ino] = status.st_blocks * 512
        spooled[entry.name] = status.st_mtime
    for algorithm in _LENGTHS:
        for entry, status in _files(storage / "blobs" / algorithm):
            sizes[status.st_ino] = status.st_blocks * 512
            held[f"{algorithm}:{entry.name}"] = status.st_ctime
    return Look(sum(sizes.values()), held, spooled)


def misnamed(storage: Path) -> list[str]:
    """Return what lies in `blobs/` and is not a plain file with the bytes that its name says."""
    wrong = []
    for algorithm, length in _LENGTHS.items():
        for entry, status in _files(storage / "blobs" / algorithm):
            if not re.fullmatch(f"[0-9a-f]{{{length}}}", entry.name):
                wrong.append(f"{entry.path} is no digest")
            elif not stat.S_ISREG(status.st_mode):
                wrong.append(f"{entry.path} is no plain file")
            else:
                data = Path(entry.path).read_bytes()
                if hashlib.new(algorithm, data).hexdigest() != entry.name:
                    wrong.append(f"{entry.path} ({len(data)} bytes) is not what its name says")
    return wrong


def _files(directory: Path) -> Iterator[tuple[os.DirEntry[str], os.stat_result]]:
    try:
        entries = list(os.scandir(directory))
    except OSError:  # before the very first start, or the disk is dead
        return
    for entry in entries:
        try:
            yield entry, entry.stat(follow_symlinks=False)
        except OSError:  # gone meanwhile
            continue
