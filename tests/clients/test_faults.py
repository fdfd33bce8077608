"""Every client pulls every image though upstream breaks off blobs and its tokens soon expire."""

import re
import sys
import time
from collections.abc import Iterator

import pytest

from tests.parts import millpond, relay
from tests.parts.client import Client
from tests.parts.curl import Curl
from tests.parts.images import Image, Index
from tests.parts.millpond import Millpond
from tests.parts.process import workdir
from tests.parts.registry import Registry
from tests.parts.relay import Relay
from tests.parts.shelf import SECRET, Shelf, push_all
from tests.parts.token_server import Access, TokenServer

LEEWAY = 60  # seconds for which docker-registry takes a token that has expired
LIFE = 2  # seconds after which it refuses one here
ANNOUNCED = 60  # seconds: Millpond cannot know
STALL = LIFE + 0.2  # seconds that the first broken blob stalls: its token is worth nothing then


class HastyTokens(TokenServer):
    """Its tokens die long before their time."""

    def answer(self, query: str, authorization: str | None) -> tuple[int, dict[str, object]]:
        """Return status and JSON for one request, with the lie in it."""
        status, said = super().answer(query, authorization)
        return status, said | {"expires_in": ANNOUNCED}


@pytest.fixture(scope="module")
def registry() -> Iterator[Registry]:
    access = Access({"pusher": "secret"}, private=frozenset({SECRET}))
    with workdir("faulty") as root:
        tokens = HastyTokens(root, access, lifetime=LIFE - LEEWAY)
        running = Registry(root, tokens)
        tokens.start()
        running.start()
        try:
            yield running
        finally:
            running.stop()
            tokens.stop()


@pytest.fixture(scope="module")
def faulty_shelf(registry: Registry) -> Shelf:
    return push_all(registry)


@pytest.fixture(scope="module")
def breaking(registry: Registry) -> Iterator[Relay]:
    with relay.running(registry.url, linger=STALL) as running:
        yield running


@pytest.fixture
def before_it(breaking: Relay, faulty_shelf: Shelf, port: int) -> Iterator[Millpond]:
    """An empty cache whose upstream is the relay, with the patience that is the default.

    It asks for one thing over one connection, so that what follows a break is its resumption.
    """
    breaking.clear()
    with millpond.running(breaking.url, port, {"parallel": {"connections": 1}}) as running:
        yield running
        sys.stdout.write(running.log()[-20_000:])  # pytest shows it when the test failed


def everything(shelf: Shelf) -> tuple[Image | Index, ...]:
    return (*shelf.common, shelf.shell, shelf.big)


def test_every_pull_succeeds(
    client: Client, before_it: Millpond, breaking: Relay, registry: Registry, faulty_shelf: Shelf
) -> None:
    asked = registry.tokens.mark()
    images = everything(faulty_shelf)
    for image in images:
        assert client.pull(image.by_tag) in {image.digest, image.here.digest}
    client.forget()
    for image in images:  # what is held now is whole, and there is no need to ask
        assert client.pull(image.by_digest) in {image.digest, image.here.digest}
    client.forget()
    assert before_it.stats()["cache"]["content_mismatches"] == 0
    assert_broken_and_resumed(breaking, len({b.digest for i in images for b in i.here.blobs}))
    scopes = [request.scopes for request in registry.tokens.since(asked)]
    assert len(scopes) > len(set(scopes)), "no token expired"


def assert_broken_and_resumed(breaking: Relay, blobs: int) -> None:
    """Every third blob broke off once, and went on by Range from what had come."""
    passages = breaking.ended()
    cuts = [passage for passage in passages if passage.cut]
    assert len(cuts) == blobs // relay.EVERY
    for cut in cuts:
        assert 0 < cut.sent < cut.length
        later = passages[passages.index(cut) + 1 :]
        rest = [p for p in later if p.path == cut.path and p.range is not None and p.is_blob]
        assert len(rest) == 1, f"{cut} went on by {rest}"
        [last] = rest
        assert last.status == 206
        offset = int(re.fullmatch(r"bytes=(\d+)-", last.range or "")[1])  # type: ignore[index]
        assert 0 <= offset <= cut.sent
        assert last.sent == cut.length - offset
    wholes = [p.path for p in passages if p.is_blob and p.range is None]
    assert len(wholes) == len(set(wholes)) == blobs, "no blob was begun twice"
    refused = [p for p in passages if p.status == 401 and p.authorized and p.range is not None]
    assert refused, "no token expired in the middle of a blob"


def test_tokens_that_expired_between_two_pulls(
    curl: Curl, before_it: Millpond, breaking: Relay, faulty_shelf: Shelf
) -> None:
    image = faulty_shelf.multi
    assert curl.get(f"{image.repository}/manifests/{image.elsewhere.digest}").status == 200
    time.sleep(STALL)
    assert curl.pull(image.by_tag) == image.digest
    refused = [p for p in breaking.ended() if p.status == 401 and p.authorized]
    assert refused, "no token expired"
    assert before_it.stats()["total"]["errors"] == {}
