"""Several clients at once, and content large enough for them to meet in mid-download."""

import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.parts.client import Client
from tests.parts.clients import Clients
from tests.parts.images import Image
from tests.parts.millpond import Millpond
from tests.parts.registry import Registry, Request
from tests.parts.shelf import Shelf

CHATTER = 100_000  # bytes of manifests, tokens and refusals beside the blobs


def blobs_fetched(requests: list[Request], image: Image) -> Counter[str]:
    """Count the bodies that were begun; large ones go on over more connections where it is slow."""
    named = {blob.digest for blob in image.blobs}
    return Counter(r.ref for r in requests if r.is_content and r.status == 200 and r.ref in named)


def assert_received_once(proxy: Millpond, image: Image) -> None:
    received = proxy.stats()["total"]["bytes_from_upstream"]
    assert 0 <= received - sum(blob.size for blob in image.blobs) < CHATTER


@pytest.mark.parametrize("names", [("docker", "containerd"), ("podman", "curl")], ids="-".join)
def test_two_clients_on_one_cold_image_cost_one_download(
    names: tuple[str, str], clients: Clients, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    image = shelf.big
    before = upstream.mark()

    def pull(client: Client) -> tuple[float, float]:
        began = time.monotonic()
        assert client.pull(image.by_tag) == image.digest
        return began, time.monotonic()

    pair = [clients[name] for name in names]
    with ThreadPoolExecutor(len(pair)) as pool:
        times = list(pool.map(pull, pair))
    assert max(began for began, _ in times) < min(ended for _, ended in times), "no overlap"
    fetched = blobs_fetched(upstream.since(before), image)
    assert fetched == {blob.digest: 1 for blob in image.blobs}
    assert_received_once(proxy, image)
    for client in pair:
        client.forget()


@pytest.mark.parametrize("name", ["docker", "skopeo", "curl"])
def test_a_layer_of_200_mb_arrives_whole(
    name: str, clients: Clients, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    image, client = shelf.big, clients[name]
    before = upstream.mark()
    for _ in ("cold", "warm"):  # every one of them checks the layer's digest
        assert client.pull(image.by_tag) == image.digest
        client.forget()
    requests = upstream.since(before)
    assert blobs_fetched(requests, image) == {blob.digest: 1 for blob in image.blobs}
    assert_received_once(proxy, image)
