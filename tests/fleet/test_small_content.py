from proxy.core.names import Repo, Target, sha256
from proxy.core.records import Descriptor
from proxy.core.sources import Place, SharedManifest
from proxy.fleet import small_content, small_values
from proxy.fleet.small_content import SmallContent
from proxy.fleet.store import Store
from proxy.runtime.supervisor import running_beside
from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.fleet.sharing import Join, asked, holds
from tests.parts.redis import Redis

APP, OTHER = Target("docker.io", Repo("library/app")), Target("docker.io", Repo("library/other"))
KIND = "application/vnd.oci.image.manifest.v1+json"
BODY = b'{"schemaVersion": 2}'
IMAGE = content.image(1)


def described(body: bytes) -> Descriptor:
    return Descriptor(KIND, sha256(body), len(body))


async def test_a_manifest_is_given_to_its_repository_only(store: Store, redis: Redis) -> None:
    small, digest = SmallContent(store), sha256(BODY)
    async with running_beside(small.run(), "send"):
        small.add(APP, described(BODY), BODY, True)

        async def is_sent() -> bool:
            return bool(await asked(redis, "KEYS", "*:manifest:*"))

        await holds(is_sent)
    assert await small.manifest(APP, digest) == SharedManifest(BODY, KIND, True, Place.PEER)
    assert await small.manifest(OTHER, digest) is None
    (key,) = await asked(redis, "KEYS", "*:manifest:*")
    assert 0 < await asked(redis, "TTL", key) <= small_values.LIFE_SECONDS
    for wrong in (b"", b"{}\n" + BODY, b'{"type": "x/y", "public": true}\nother', b"\xff" * 99):
        await asked(redis, "SET", key, wrong)
        assert await small.manifest(APP, digest) is None
    await asked(redis, "SET", key, b'{"type": "x/y\\r\\nX-Evil: 1"}\n' + BODY)
    assert await small.manifest(APP, digest) is None


async def test_a_large_manifest_is_not_sent(store: Store, redis: Redis) -> None:
    small, body = SmallContent(store), b" " * (small_content.LARGEST + 1)
    small.add(APP, described(body), body, True)
    small.add(APP, described(BODY), BODY, False)
    async with running_beside(small.run(), "send"):

        async def is_sent() -> bool:
            return bool(await asked(redis, "KEYS", "*:manifest:*"))

        await holds(is_sent)
    assert await small.manifest(APP, sha256(body)) is None
    found = await small.manifest(APP, sha256(BODY))
    assert found is not None
    assert not found.is_public


async def test_a_manifest_outlives_the_replica_that_has_it(
    join: Join, upstream: FakeUpstream, redis: Redis
) -> None:
    upstream.add("library/app", IMAGE)
    first = await join()
    assert (await first.get("/v2/app/manifests/latest")).status == 200

    async def is_sent() -> bool:
        return bool(await asked(redis, "KEYS", "*:manifest:*"))

    await holds(is_sent)
    await first.close()
    upstream.clear()
    answer = await (await join(followers=1)).get("/v2/app/manifests/latest")
    assert (answer.status, answer.body) == (200, IMAGE.manifest)
    assert upstream.count() == 0
