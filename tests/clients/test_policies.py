"""Real clients and a real registry under policies, with the recipe of ``docs/policies.md``."""

import json
import re
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from tests.parts import millpond
from tests.parts.client import Client, PullError
from tests.parts.curl import Curl
from tests.parts.images import OCI, Image
from tests.parts.millpond import Millpond
from tests.parts.push import Pusher, Recipe, push_image, random_layer
from tests.parts.registry import Registry
from tests.policies import signing

PAGE = Path(__file__).resolve().parents[2] / "docs" / "policies.md"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"


@dataclass(frozen=True)
class Signed:
    """A registry's images: one signed each way of cosign, and one not at all."""

    signer: signing.Signer
    tagged: Image
    bundled: Image
    unsigned: Image


@pytest.fixture(scope="module")
def signed(upstream: Registry) -> Signed:
    pusher, signer = Pusher(upstream), signing.p256()

    def made(name: str) -> Image:
        recipe = Recipe(OCI, [random_layer(f"policies-{name}", 2000)])
        return push_image(pusher, f"acme/{name}", "1.0", recipe)

    images = Signed(signer, made("tagged"), made("bundled"), made("unsigned"))
    digest = images.tagged.digest
    _attach(pusher, images.tagged, signing.signed_by(signer, digest), signing.sig_tag(digest))
    digest = images.bundled.digest
    bundle = signing.content.artifact(None, signing.BUNDLE, payload=signing.dsse(signer, digest))
    referrer, size = _attach(pusher, images.bundled, bundle, "")
    entry = {"mediaType": OCI.manifest, "digest": referrer, "size": size}
    listed = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [entry | {"artifactType": signing.BUNDLE}],
    }
    pusher.manifest("acme/bundled", digest.replace(":", "-"), OCI_INDEX, listed)
    return images


def _attach(pusher: Pusher, image: Image, attachment: signing.Image, tag: str) -> tuple[str, int]:
    for body in attachment.blobs.values():
        pusher.blob(image.repository, "", body)
    document = json.loads(attachment.manifest)
    return pusher.manifest(image.repository, tag, OCI.manifest, document)


@pytest.fixture
def started(
    upstream: Registry, port: int, signed: Signed, tmp_path: Path
) -> Iterator[Callable[..., Millpond]]:
    """Start Millpond with the last recipe of the page, its key replaced."""
    [recipe] = re.findall(r"```yaml\n(.*?)```", PAGE.read_text(), re.DOTALL)[-1:]
    document: dict[str, Any] = yaml.safe_load(recipe)
    key = signed.signer.file(tmp_path)
    document["policies"][0]["require"]["cosign"]["keys"] = [key]
    with millpond.running(upstream.url, port, document) as running:

        def enforce() -> Millpond:
            del document["policies"][0]["audit"]
            running.configure(document)
            running.signal(signal.SIGHUP)
            until(lambda: running.events("settings reloaded"))
            return running

        yield lambda *, is_trial=False: running if is_trial else enforce()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def counted(proxy: Millpond, outcome: str) -> int:
    with urlopen(f"{proxy.url}/metrics", timeout=10) as answer:
        page = answer.read().decode()
    [line] = [
        one
        for one in page.splitlines()
        if one.startswith("millpond_policy_decisions_total{") and f'outcome="{outcome}"' in one
    ]
    return int(float(line.split()[-1]))


def test_the_recipe_begins_as_a_trial(
    curl: Curl, started: Callable[..., Millpond], signed: Signed
) -> None:
    proxy = started(is_trial=True)
    assert curl.pull(signed.unsigned.by_tag) == signed.unsigned.digest
    assert counted(proxy, "audited") > 0
    assert counted(proxy, "denied") == 0


def test_clients_get_signed_images_only(
    client: Client, started: Callable[..., Millpond], signed: Signed
) -> None:
    proxy = started()
    for image in (signed.tagged, signed.bundled):
        assert client.pull(image.by_tag) == image.digest
        client.forget()
        assert client.pull(image.by_digest) == image.digest
    for reference in (signed.unsigned.by_tag, signed.unsigned.by_digest):
        with pytest.raises(PullError):
            client.pull(reference)
    assert counted(proxy, "denied") > 0


def test_signed_images_are_served_without_the_registry(
    curl: Curl, upstream: Registry, started: Callable[..., Millpond], signed: Signed
) -> None:
    proxy = started()
    for image in (signed.tagged, signed.bundled):
        curl.pull(image.by_tag)
    curl.forget()
    with upstream.outage():
        proxy.restart()
        for image in (signed.tagged, signed.bundled):
            assert curl.pull(image.by_tag) == image.digest
        refused = curl.get(f"{signed.unsigned.repository}/manifests/1.0")
        assert refused.status in {403, 502, 504}
