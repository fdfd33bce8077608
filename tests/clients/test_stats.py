"""The numbers Millpond reports, against the upstream's own log and what curl received."""

import pytest

from tests.parts.clients import Clients
from tests.parts.curl import Curl
from tests.parts.millpond import Millpond
from tests.parts.registry import Registry, Request
from tests.parts.shelf import Shelf


def counted(proxy: Millpond) -> dict[str, int]:
    found = proxy.stats()["upstreams"]["docker.io"]
    assert isinstance(found, dict)
    return found


def body_bytes(requests: list[Request]) -> int:
    """Return the bytes that crossed the wire: a HEAD's are logged by some handlers, never sent."""
    return sum(request.size for request in requests if request.method == "GET")


# What is fetched ahead is still on its way when a client has what it asked for.
as_asked = pytest.mark.parametrize("settings", [{"prefetch": {"blobs": 0}}], ids=["as asked"])


@as_asked
def test_every_request_and_byte_is_counted_once(
    curl: Curl, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    before, tokens = upstream.mark(), upstream.tokens.mark()
    for image in shelf.common:
        curl.pull(image.by_tag)
    asked = upstream.since(before)
    cold = counted(proxy)
    assert cold["upstream_requests"] == len(asked)
    assert cold["token_requests"] == len(upstream.tokens.since(tokens))
    assert cold["bytes_from_upstream"] == body_bytes(asked)
    assert cold["requests"] == cold["misses"] == len(curl.replies)
    assert cold["hits"] == 0
    assert cold["bytes_to_clients"] == sum(reply.size for reply in curl.replies)

    for image in shelf.common:
        curl.pull(image.by_tag)
        curl.pull(image.by_digest)
    assert upstream.since(before) == asked
    warm = counted(proxy)
    assert warm["upstream_requests"] == cold["upstream_requests"]
    assert warm["bytes_from_upstream"] == cold["bytes_from_upstream"]
    assert warm["requests"] == len(curl.replies)
    assert warm["bytes_saved"] == warm["bytes_to_clients"] - warm["bytes_from_upstream"] > 0
    assert warm["misses"] == cold["misses"]
    assert warm["hits"] == len(curl.replies) - cold["misses"]
    assert warm["bytes_to_clients"] == sum(reply.size for reply in curl.replies)


@as_asked
def test_real_clients_are_counted_too(
    clients: Clients, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    before = upstream.mark()
    for name in ("docker", "containerd", "podman", "skopeo"):
        client = clients[name]
        for image in shelf.common:
            client.pull(image.by_tag)
    asked = upstream.since(before)
    stats = counted(proxy)
    assert stats["upstream_requests"] == len(asked)
    assert stats["bytes_from_upstream"] == body_bytes(asked)
    content = {blob.digest: blob.size for image in shelf.common for blob in image.here.blobs}
    assert stats["bytes_to_clients"] >= 4 * sum(content.values())
