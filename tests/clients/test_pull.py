"""Every client pulls every kind of image through a cold cache, then from the cache alone."""

from urllib.request import urlopen

import pytest

from tests.parts.client import Client
from tests.parts.millpond import Millpond
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf


@pytest.mark.parametrize("how", ["by_tag", "by_digest"])
def test_a_warm_pull_asks_upstream_nothing(
    client: Client, how: str, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    before = upstream.mark()
    for image in shelf.common:
        assert client.pull(getattr(image, how)) in {image.digest, image.here.digest}
    fetched = {request.ref for request in upstream.since(before) if request.is_content}
    for image in shelf.common:
        assert {blob.digest for blob in image.here.blobs} <= fetched

    client.forget()
    cold, tokens = upstream.mark(), upstream.tokens.mark()
    for image in shelf.common:
        assert client.pull(getattr(image, how)) in {image.digest, image.here.digest}
    assert upstream.since(cold) == []
    assert upstream.tokens.since(tokens) == []


@pytest.mark.parametrize("settings", [{"workers": 2}])
def test_workers_serve_every_client(
    client: Client, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    client.pull(shelf.multi.by_tag)
    client.forget()
    before = upstream.mark()
    assert client.pull(shelf.multi.by_tag) in {shelf.multi.digest, shelf.multi.here.digest}
    assert upstream.since(before) == []
    with urlopen(f"{proxy.url}/metrics", timeout=10) as answer:
        assert b'millpond_worker_requests_total{worker="2"}' in answer.read()


def test_a_restart_forgets_nothing(
    client: Client, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    client.pull(shelf.multi.by_tag)
    client.forget()
    proxy.restart()
    before = upstream.mark()
    client.pull(shelf.multi.by_tag)
    assert upstream.since(before) == []
