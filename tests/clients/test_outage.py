"""Upstream and its token server are down: every client can pull cached images."""

import time

import pytest

from tests.parts.client import Client
from tests.parts.curl import Curl
from tests.parts.millpond import Millpond
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf

STALE = {"freshness": {"tag_ttl": "1s", "stale_while_revalidate": "0s"}}


@pytest.mark.parametrize("settings", [{}, STALE], ids=["fresh-tags", "stale-tags"])
def test_every_client_pulls_what_one_of_them_pulled_before(
    client: Client, curl: Curl, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    for image in shelf.common:
        curl.pull(image.by_tag)
    time.sleep(1.1)  # past STALE's tag_ttl
    with upstream.outage():
        proxy.restart()
        for image in shelf.common:
            for reference in (image.by_tag, image.by_digest):
                assert client.pull(reference) in {image.digest, image.here.digest}
                client.forget()


def test_what_was_never_pulled_is_an_error_but_not_an_absence(
    curl: Curl, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    image = shelf.tiny
    with upstream.outage():
        for ref in (image.tag, image.digest):
            assert curl.get(f"{image.repository}/manifests/{ref}").status in {502, 504}
        blob = image.layers[0].digest
        assert curl.get(f"{image.repository}/blobs/{blob}").status in {502, 504}
    assert curl.pull(image.by_tag) == image.digest  # and it heals by itself
