"""A private repository: content with our credentials, an error and nothing else without."""

import pytest

from tests.clients.conftest import USER
from tests.parts.client import Client, PullError
from tests.parts.curl import Curl
from tests.parts.millpond import Millpond
from tests.parts.registry import Registry
from tests.parts.shelf import Shelf

AS_USER = {"upstreams": {"docker.io": USER}}
WRONG = {"upstreams": {"docker.io": USER | {"password": "looking-glass"}}}


@pytest.mark.parametrize("settings", [AS_USER], ids=["as-user"])
def test_our_credentials_open_it(
    client: Client, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    before = upstream.tokens.mark()
    assert client.pull(shelf.secret.by_tag) == shelf.secret.digest
    client.forget()
    assert client.pull(shelf.secret.by_digest) == shelf.secret.digest
    assert {request.user for request in upstream.tokens.since(before)} == {USER["username"]}
    assert USER["password"] not in proxy.log()


def test_the_anonymous_are_refused(
    client: Client, proxy: Millpond, upstream: Registry, shelf: Shelf
) -> None:
    before = upstream.mark()
    for reference in (shelf.secret.by_tag, shelf.secret.by_digest):
        with pytest.raises(PullError):
            client.pull(reference)
    asked = upstream.since(before)
    assert asked  # the refusal is upstream's, not the client's own
    assert not [request for request in asked if request.is_content]


@pytest.mark.parametrize(
    ("settings", "status"), [({}, 403), (WRONG, 502)], ids=["anonymous", "wrong-password"]
)
def test_the_refusal_leads_nobody_elsewhere(
    curl: Curl, proxy: Millpond, shelf: Shelf, status: int
) -> None:
    image = shelf.secret
    for ref in (image.tag, image.digest):
        refusal = curl.get(f"{image.repository}/manifests/{ref}")
        assert refusal.status == status
        assert "www-authenticate" not in refusal.headers
        assert b'"errors"' in refusal.body.read_bytes()
    for blob in image.blobs:
        refusal = curl.get(f"{image.repository}/blobs/{blob.digest}")
        assert refusal.status == status
        assert refusal.digest != blob.digest
