"""Names of images in ``index.json``, which others may have written."""

import json
from typing import Any

import pytest

from proxy.core.names import Digest, Repo, Tag, Target, sha256
from proxy.core.oci_layout import (
    BEGIN,
    END,
    NAME,
    NEXT,
    OURS,
    TRUE,
    NamedImage,
    annotations,
    entries,
    named_image,
)
from proxy.core.records import Descriptor

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DIGEST, OTHER = sha256(b"one"), sha256(b"other")
IMAGE = Descriptor(OCI_INDEX, DIGEST, 3)


def entry(name: str, digest: Digest = DIGEST, **more: Any) -> dict[str, Any]:
    descriptor = {"mediaType": OCI_INDEX, "digest": digest, "size": 3}
    return descriptor | {"annotations": {NAME: name, **more}}


def written(*documents: object) -> bytes:
    """Return what Millpond writes: a line for each entry."""
    lines = NEXT.join(json.dumps(document).encode() for document in documents)
    return b'{"schemaVersion": 2' + BEGIN.encode() + lines + END


def test_an_image_is_named_by_tag_or_digest() -> None:
    target = Target("docker.io", Repo("library/app"))
    tagged = named_image(entry("docker.io/library/app:1.2"))
    assert tagged == NamedImage(target, Tag("1.2"), IMAGE)
    assert named_image(entry(f"docker.io/library/app@{DIGEST}")) == NamedImage(target, None, IMAGE)


def test_a_port_belongs_to_the_registry() -> None:
    found = named_image(entry("lab:5000/app:1"))
    assert found is not None
    assert (found.target, found.tag) == (Target("lab:5000", Repo("app")), "1")


def test_our_own_name_comes_before_the_standard_one() -> None:
    found = named_image(entry("app:1", **{OURS: "ghcr.io/team/app:2"}))
    assert found is not None
    assert (str(found.target), found.tag) == ("ghcr.io/team/app", "2")


def test_the_descriptor_of_upstream_comes_before_the_entry() -> None:
    true = {"mediaType": OCI_INDEX, "digest": OTHER, "size": 5}
    found = named_image(entry("docker.io/library/app:1", **{TRUE: json.dumps(true)}))
    assert found is not None
    assert found.descriptor == Descriptor(OCI_INDEX, OTHER, 5)


@pytest.mark.parametrize(
    "unnamed",
    [
        None,
        [],
        "text",
        {},
        entry(""),
        entry("latest"),
        entry("app:1"),  # no registry
        entry("/app:1") | {"digest": "sha256:short"},
        entry("docker.io/library/app"),  # neither tag nor digest
        entry("docker.io/Library/App:1"),
        entry("docker.io/../app:1"),
        entry("docker.io/library/app:a b"),
        entry(f"docker.io/library/app@{OTHER}"),  # names other content than it describes
        entry("docker.io/library/app@sha256:short"),
        entry("docker.io/library/app:1", **{TRUE: "no JSON"}),
        entry("docker.io/library/app:1", **{TRUE: "[" * 100_000}),
        entry("docker.io/library/app:1", **{TRUE: "[]"}),
    ],
)
def test_what_names_no_image_is_left_out(unnamed: object) -> None:
    assert named_image(unnamed) is None


@pytest.mark.parametrize("document", [None, [], {"annotations": []}, {}])
def test_annotations_are_an_object_or_nothing(document: object) -> None:
    assert annotations(document) == {}


def test_entries_of_our_own_file_are_read_line_by_line() -> None:
    some = [entry("docker.io/library/app:1"), entry("docker.io/library/app:2", OTHER)]
    content = written(*some)
    assert list(entries(content)) == some
    assert json.loads(content)["manifests"] == some
    assert list(entries(written())) == []


def test_a_damaged_line_costs_one_entry() -> None:
    some = [entry("docker.io/library/app:1"), entry("docker.io/library/app:2", OTHER)]
    content = written(*some).replace(b'"size": 3', b'"size" 3', 1)
    assert list(entries(content)) == some[1:]


def test_entries_of_other_writers_are_read_as_a_whole() -> None:
    some = [entry("docker.io/library/app:1")]
    document = {"schemaVersion": 2, "manifests": some}
    for content in (json.dumps(document), json.dumps(document, indent=2)):
        assert list(entries(content.encode())) == some
    # It begins as our own files do, but goes on behind its entries.
    longer = written(*some).removesuffix(b"}\n") + b', "annotations": {}}'
    assert list(entries(longer)) == some


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b'{"manifests": 5}', b"\xff"])
def test_what_is_no_index_has_no_entries(content: bytes) -> None:
    assert list(entries(content)) == []
