"""The outcome of a request that has ended."""

from tests.fakes import content
from tests.fakes.upstream import FakeUpstream
from tests.running import Proxy

IMAGE = content.image(1)
MANIFEST = "/v2/app/manifests/latest"


async def test_only_a_manifest_that_is_sent_whole_is_a_pull(
    proxy: Proxy, upstream: FakeUpstream
) -> None:
    def pulls() -> int:
        return proxy.app.admin._metrics.of("docker.io").manifest_pulls

    upstream.add("library/app", IMAGE)
    assert (await proxy.head(MANIFEST)).status == 200
    assert (await proxy.get("/v2/app/manifests/missing")).status == 404
    assert (await proxy.get(f"/v2/app/blobs/{IMAGE.config}")).status == 200
    assert pulls() == 0
    assert (await proxy.get(MANIFEST)).status == 200
    assert pulls() == 1
    assert (await proxy.get(MANIFEST, If_None_Match=f'"{IMAGE.digest}"')).status == 304
    assert pulls() == 1
    assert (await proxy.get(MANIFEST)).status == 200
    assert pulls() == 2
