"""Stored bytes are hashed in pieces, and a file that ends early is an error of the disk."""

import pytest

from proxy.content.checks import hash_stored
from proxy.core.errors import StorageError
from proxy.core.names import DigestVerifier, sha256

DATA = bytes(range(256)) * 4096 + b"the end"


class Stored:
    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read(self, start: int, stop: int) -> bytes:
        self.reads.append((start, stop))
        return self.data[start:stop]


@pytest.mark.parametrize("cut", [0, 1, 256 * 1024, 300_000, len(DATA)])
def test_ranges_one_after_the_other_make_the_whole(cut: int) -> None:
    verifier, stored = DigestVerifier(sha256(DATA)), Stored(DATA)
    hash_stored(verifier, stored, 0, cut)
    hash_stored(verifier, stored, cut, len(DATA))
    assert verifier.is_valid
    assert all(stop <= len(DATA) for _, stop in stored.reads)
    assert max(stop - start for start, stop in stored.reads) <= 256 * 1024


def test_not_a_byte_behind_the_end_is_hashed() -> None:
    verifier = DigestVerifier(sha256(DATA[:300_000]))
    hash_stored(verifier, Stored(DATA), 0, 300_000)
    assert verifier.is_valid


def test_a_file_that_ends_early_is_an_error() -> None:
    with pytest.raises(StorageError, match=r"ends at 1048583 instead of 1048584"):
        hash_stored(DigestVerifier(sha256(DATA)), Stored(DATA), 0, len(DATA) + 1)
