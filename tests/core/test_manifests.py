import asyncio
import json
from typing import Any

import pytest

from proxy.core import manifests
from proxy.core.manifests import walk
from proxy.core.names import Digest
from proxy.core.records import Descriptor
from tests.fakes import content

EIB = 1 << 60
LAYER = {"mediaType": "application/x", "digest": content.digest(b"layer"), "size": 5}


def children(body: bytes) -> manifests.Children:
    found = manifests.read(body).children
    assert found is not None
    return found


def lists(key: str, *entries: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, key: entries}).encode()


def test_an_image_needs_its_config_and_layers() -> None:
    image = content.image(1)
    needed = children(image.manifest)
    assert {d.digest for d in needed.blobs} == set(image.blobs)
    assert not needed.manifests
    sizes = {d.digest: d.size for d in needed.blobs}
    assert sizes == {digest: len(data) for digest, data in image.blobs.items()}


def test_an_index_needs_its_manifests() -> None:
    index = content.multi_platform(1)
    needed = children(index.manifest)
    assert {d.digest for d in needed.manifests} == set(index.manifests) - {index.digest}
    assert not needed.blobs


def test_foreign_layers_are_not_needed() -> None:
    image = content.foreign_image(["https://example.com/layer"], 1)
    needed = children(image.manifest)
    foreign = {layer["digest"] for layer in json.loads(image.manifest)["layers"] if "urls" in layer}
    assert foreign
    assert not foreign & {d.digest for d in needed.blobs}


def test_what_is_listed_twice_is_listed_once() -> None:
    body = lists("layers", LAYER, LAYER | {"size": 5})
    assert manifests.read(body).listed == ((LAYER["digest"], 5),)


@pytest.mark.parametrize("key", ["manifests", "layers", "blobs"])
def test_null_and_absent_lists_are_empty(key: str) -> None:
    body = json.dumps({"schemaVersion": 2, key: None, "config": None}).encode()
    assert children(body) == ((), ())
    assert children(b'{"schemaVersion": 2}') == ((), ())


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"layers": 1, "manifests": "x", "config": []}',
        b'{"layers": [{"digest": "../../etc", "size": 1}, {"digest": "sha256:x", "size": -1}, 7]}',
        b'{"schemaVersion": 2, "layers": NaN}',
        b'{"schemaVersion": 2, "a": 1e999}',
        lists("layers", LAYER, "no descriptor"),
        lists("layers", {"digest": LAYER["digest"]}),
    ],
)
def test_what_is_not_understood_may_need_anything(body: bytes) -> None:
    found = manifests.read(body)
    assert found.children is None
    assert found.listed is None
    assert found.subject is None


@pytest.mark.parametrize("key", ["manifests", "layers", "blobs", "config"])
@pytest.mark.parametrize(
    "size",
    [
        "-1",
        str(EIB + 1),
        str(1 << 64),
        pytest.param("1" + "0" * 5000, id="5000 digits"),
        "true",
        "false",
        "5.0",
        "1e300",
        '"5"',
        "null",
        "[5]",
    ],
)
def test_t44_a_size_out_of_bounds_makes_all_that_is_listed_unknown(key: str, size: str) -> None:
    entry = json.dumps(LAYER | {"size": "SIZE"}).replace('"SIZE"', size)
    good = json.dumps(LAYER | {"digest": content.digest(b"good")})
    value = entry if key == "config" else f"[{good}, {entry}]"
    found = manifests.read(f'{{"schemaVersion": 2, "{key}": {value}}}'.encode())
    assert found.is_manifest
    assert found.children is None


@pytest.mark.parametrize("size", [0, 1, EIB])
def test_t44_a_size_within_bounds_is_understood(size: int) -> None:
    body = lists("layers", LAYER | {"size": size})
    assert manifests.read(body).listed == ((LAYER["digest"], size),)
    refers = json.dumps({"schemaVersion": 2, "subject": LAYER | {"size": size}}).encode()
    assert manifests.read(refers).subject is not None


def test_t44_a_subject_out_of_bounds_is_no_subject() -> None:
    body = json.dumps({"schemaVersion": 2, "subject": LAYER | {"size": 1 << 64}}).encode()
    assert manifests.read(body).subject is None


def test_t45_more_descriptors_than_are_followed_are_unknown() -> None:
    entries = [LAYER | {"size": number} for number in range(manifests.MAX_LISTED + 1)]
    assert manifests.read(lists("layers", *entries[:-1])).children is not None
    assert manifests.read(lists("layers", *entries)).children is None
    half = len(entries) // 2
    both = {"schemaVersion": 2, "layers": entries[:half], "blobs": entries[half:]}
    assert manifests.read(json.dumps(both).encode()).children is None


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"0,", b'"",', b'{"a":', b"["])
def test_t45_an_absurd_number_of_values_is_not_parsed(piece: bytes) -> None:
    body = b'{"schemaVersion": 2, "x": [' + piece * (4 * 1024 * 1024 // len(piece))
    found = manifests.read(body)
    assert (found.own_type, found.children) == (None, None)
    assert found.is_manifest, "it is passed on as what upstream calls it"
    assert not manifests.read(b"<html>" + body).is_manifest


def test_media_type_from_the_document_or_its_shape() -> None:
    def own(body: bytes) -> str | None:
        return manifests.read(body).own_type

    def implied(body: bytes) -> str:
        return manifests.read(body).implied_type

    assert own(content.image(1, docker=True).manifest) == manifests.DOCKER_MANIFEST
    assert own(content.untyped(1).manifest) is None
    assert own(b'{"mediaType": "x/y\\r\\nSet-Cookie: a"}') is None
    assert own(b'{"mediaType": ["x/y"]}') is None
    assert implied(content.untyped(1).manifest) == manifests.OCI_MANIFEST
    assert implied(b'{"manifests": []}') == manifests.OCI_INDEX
    assert implied(b'{"schemaVersion": 1}') == manifests.SCHEMA1


def test_fields_of_a_wrong_type_are_left_out_of_entries() -> None:
    entry = LAYER | {"artifactType": 7, "annotations": {"good": "x", "bad": [1]}, "mediaType": {}}
    found = manifests.read_referrers(lists("manifests", entry, 7, LAYER | {"size": -1}, LAYER))
    good = {"digest": LAYER["digest"], "size": 5, "annotations": {"good": "x"}}
    assert found == [good, LAYER]
    assert manifests.read_referrers(lists("manifests")) == []
    assert manifests.read_referrers(b'{"manifests": null}') is None


def test_what_a_manifest_says_of_itself_is_of_the_right_type_and_bounded() -> None:
    def entry(**fields: object) -> dict[str, object]:
        body = json.dumps({"schemaVersion": 2, "subject": LAYER, **fields}).encode()
        subject = manifests.read(body).subject
        assert subject is not None
        assert subject.digest == LAYER["digest"]
        return subject.entry(Descriptor("a/b", subject.digest, 9))

    plain = {"mediaType": "a/b", "digest": LAYER["digest"], "size": 9}
    assert entry() == plain
    assert entry(artifactType="x/y") == plain | {"artifactType": "x/y"}
    assert entry(config={"mediaType": "c/d"}) == plain | {"artifactType": "c/d"}
    assert entry(artifactType=["x"], config=7, annotations="none") == plain
    assert entry(annotations={"a": "b", "c": 1}) == plain | {"annotations": {"a": "b"}}
    assert entry(annotations={"a": "b" * manifests.MAX_ENTRY}) == plain


def listing(graph: dict[str, list[str]]) -> Any:
    """Return what a graph says is listed, and which nodes were looked up."""
    asked: list[str] = []

    async def listed(digest: Digest) -> list[Digest]:
        asked.append(digest)
        return [Digest(child) for child in graph.get(digest, [])]

    return listed, asked


GRAPH = {"index": ["a", "b"], "a": ["config", "layer"], "b": ["layer", "last"]}


async def test_a_walk_visits_each_once_in_order_and_manifests_first() -> None:
    listed, asked = listing(GRAPH)
    nodes = [node async for node in walk([Digest("index")], listed)]
    assert [node.digest for node in nodes] == ["index", "a", "config", "layer", "b", "last"]
    assert [node.parent for node in nodes] == [None, "index", "a", "a", "index", "b"]
    assert [node.depth for node in nodes] == [0, 1, 2, 2, 1, 2]
    assert asked == [node.digest for node in nodes]


async def test_a_walk_ends_in_a_cycle_and_takes_several_roots() -> None:
    listed, asked = listing({"a": ["b", "a"], "b": ["a", "c"]})
    nodes = [node.digest async for node in walk(map(Digest, ["c", "a", "b"]), listed)]
    assert nodes == asked == ["c", "a", "b"]


async def test_a_walk_goes_no_deeper_than_it_may() -> None:
    listed, asked = listing({"a": ["b"], "b": ["c"], "c": ["d"]})
    nodes = [node.digest async for node in walk([Digest("a")], listed, max_depth=2)]
    assert nodes == ["a", "b", "c"]
    assert asked == ["a", "b"]


async def test_a_long_walk_lets_others_run() -> None:
    listed, _ = listing({"a": [str(number) for number in range(1000)]})
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    counting = asyncio.create_task(count())
    visited = [node async for node in walk([Digest("a")], listed)]
    counting.cancel()
    assert len(visited) == 1001
    assert turns >= 3
