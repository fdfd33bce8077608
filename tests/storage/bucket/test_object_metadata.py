"""The metadata of objects, including metadata from other programs."""

import json

import pytest

from proxy.core.names import Repo, Target
from proxy.storage.bucket.object_metadata import MAX_BYTES, ObjectMetadata

APP = Target("docker.io", Repo("library/app"))
LAB = Target("lab:5000", Repo("a/b/c"))


@pytest.mark.parametrize(
    "metadata",
    [
        ObjectMetadata(),
        ObjectMetadata("application/json", is_public=True, holders=frozenset({APP, LAB})),
    ],
)
def test_a_card_is_read_as_it_was_written(metadata: ObjectMetadata) -> None:
    assert ObjectMetadata.parse(metadata.text()) == metadata
    assert metadata.text().isascii()


def test_it_fits_into_the_metadata_of_s3() -> None:
    holders = frozenset(Target("docker.io", Repo(f"library/app{n}")) for n in range(500))
    text = ObjectMetadata("x", is_public=True, holders=holders).text()
    assert MAX_BYTES - 40 < len(text) <= MAX_BYTES
    assert ObjectMetadata.parse(text).holders < holders


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "not JSON",
        "[]",
        "{}",
        '{"public": "yes", "type": 7, "in": "docker.io/library/app"}',
        '{"public": 1, "in": [7, null, "docker.io", "/x", "docker.io/UPPER", {}]}',
        "[" * 10_000,
    ],
)
def test_what_is_not_understood_allows_nothing(text: str | None) -> None:
    assert ObjectMetadata.parse(text) == ObjectMetadata()


def test_what_a_later_version_adds_is_ignored() -> None:
    later = {"v": 2, "in": [str(APP)], "public": True, "type": None, "new": {"a": [1]}}
    assert ObjectMetadata.parse(json.dumps(later)) == ObjectMetadata(None, True, frozenset({APP}))
