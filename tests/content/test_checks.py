"""Held content is hashed again: which errors condemn it, at which pace, and what stays open."""

import errno

import pytest

from proxy.content.checks import CHUNK, Verdict, check, hashed, keep_cached, no_pause
from proxy.core.errors import StorageError
from proxy.core.names import Digest, sha256
from proxy.core.records import BlobRecord

DATA = b"x" * (2 * CHUNK + 5)
RECORD = BlobRecord(sha256(DATA), len(DATA), None, 0.0)


def failing(number: int) -> StorageError:
    """Return the error of a store whose operating system reported ``number``."""
    error = StorageError("the store failed")
    error.__cause__ = OSError(number, errno.errorcode[number])
    return error


class File:
    """An open blob, and the store that opens it."""

    modified_at = 0.0

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.size = len(data)
        self.is_open = False
        self.on_open: StorageError | None = None
        self.on_read: StorageError | None = None

    def open(self, digest: Digest) -> "File":
        if self.on_open is not None:
            raise self.on_open
        self.is_open = True
        return self

    def read(self, start: int, stop: int) -> bytes:
        if self.on_read is not None:
            raise self.on_read
        return self.data[start:stop]

    def close(self) -> None:
        self.is_open = False


async def checked(file: File) -> Verdict:
    return await check(file, RECORD, no_pause, keep_cached)  # type: ignore[arg-type]  # only opens


async def test_right_content_has_no_problem() -> None:
    file = File(DATA)
    assert await checked(file) == Verdict(None, len(DATA))
    assert not file.is_open


async def test_wrong_bytes_and_their_size_are_reported() -> None:
    file = File(DATA + b"!")
    verdict = await checked(file)
    assert verdict.size == len(DATA) + 1
    assert verdict.problem == {
        "reason": "its bytes are not its name",
        "size": len(DATA),
        "size_found": len(DATA) + 1,
        "digest_found": sha256(DATA + b"!"),
    }


async def test_a_missing_file_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    file = File(DATA)
    monkeypatch.setattr(file, "open", lambda digest: None)
    assert await checked(file) == Verdict({"reason": "its file is missing"}, None)


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
@pytest.mark.parametrize("step", ["on_open", "on_read"])
async def test_a_lack_of_descriptors_or_memory_says_nothing_about_content(
    number: int, step: str
) -> None:
    file = File(DATA)
    setattr(file, step, failing(number))
    assert await checked(file) == Verdict(None, None)
    assert not file.is_open


@pytest.mark.parametrize("step", ["on_open", "on_read"])
async def test_an_error_of_the_disk_condemns_the_content(step: str) -> None:
    file = File(DATA)
    setattr(file, step, failing(errno.EIO))
    verdict = await checked(file)
    assert verdict.problem is not None
    assert verdict.size is None
    assert not file.is_open


async def test_each_step_is_reported_and_paced() -> None:
    steps: list[object] = []

    async def pace(size: int) -> None:
        steps.append(size)

    def after(_: object, start: int, stop: int) -> None:
        steps.append((start, stop))

    verifier = await hashed(File(DATA), RECORD.digest, pace, after)
    assert verifier.is_valid
    second, end = 2 * CHUNK, len(DATA)
    assert steps == [(0, CHUNK), CHUNK, (CHUNK, second), CHUNK, (second, end), 5]
