"""Manifests with all that is below them, as every index must know them."""

from dataclasses import replace

from proxy.core.manifests import OCI_INDEX
from proxy.core.records import BLOCK
from proxy.index import Weight
from tests.index.indexes import (
    Files,
    blob,
    digest,
    digests,
    listing,
    manifest,
    opened,
)


async def test_what_is_held_below_a_manifest_is_weighed_once(files: Files) -> None:
    index = await files.open()
    await index.set_blob(replace(manifest(1), media_type=OCI_INDEX), listing(2, 3))
    for number, below in ((2, (5, 6)), (3, (5, 7))):
        await index.set_blob(manifest(number), listing(*below))
    await index.set_blob(manifest(4), None)
    await index.set_blob(blob(5, size=5000), ())
    await index.set_blob(blob(6, size=1), ())
    async for index in opened(files):
        assert await index.weights(digests(1, 2, 3, 4, 6, 9)) == {
            digest(1): Weight(6 * BLOCK, 0),
            digest(2): Weight(4 * BLOCK, 0),
            digest(3): Weight(3 * BLOCK, 1),
            digest(4): Weight(BLOCK, 1),
            digest(6): Weight(BLOCK, 0),
        }
        found = await index.listings(digests(5, 6, 9))
        assert found == dict(zip(digests(5, 6, 9), [2, 1, 0], strict=True))


async def test_a_tree_has_all_that_a_manifest_lists_held_or_not(files: Files) -> None:
    index = await files.open()
    for number, below in ((1, (2, 3)), (2, (5, 6)), (3, (5, 7))):
        await index.set_blob(manifest(number), listing(*below))
    await index.set_blob(blob(5, size=5000), ())
    async for index in opened(files):
        assert await index.trees(digests(1, 3, 9)) == {
            digest(1): dict(zip(digests(1, 2, 3, 5, 6, 7), [4096] * 3 + [8192, 0, 0], strict=True)),
            digest(3): dict(zip(digests(3, 5, 7), [4096, 8192, 0], strict=True)),
            digest(9): {digest(9): 0},
        }


async def test_manifests_that_list_each_other_have_a_tree_and_a_weight(files: Files) -> None:
    index = await files.open()
    for number, below in ((1, 2), (2, 1)):
        await index.set_blob(replace(manifest(number), media_type=OCI_INDEX), listing(below))
    assert (await index.trees(digests(1)))[digest(1)].keys() == {*digests(1, 2)}
    assert await index.weights(digests(1)) == {digest(1): Weight(2 * BLOCK, 1)}


async def test_what_other_manifests_list_besides(files: Files) -> None:
    index = await files.open()
    for number, below in ((1, (2, 3)), (4, (3, 5))):
        await index.set_blob(manifest(number), listing(*below))
    assert await index.listed_by_others(digests(1, 2, 3), {*digests(1, 2, 3)}) == {*digests(3)}
    assert await index.listed_by_others(digests(1, 2, 3, 4), {*digests(1, 2, 3, 4)}) == set()
    assert await index.listed_by_others(digests(2, 9), {*digests(2, 9)}) == {*digests(2)}
