"""Opening a bucket of each service, and the messages of errors."""

import sys
from typing import Any

import pytest
from obstore.exceptions import GenericError
from obstore.store import AzureStore, S3Store

from proxy.app import bucket as buckets
from proxy.core.errors import ConfigError
from proxy.settings import Bucket
from proxy.storage.bucket import stores

KEY = {"access_key_id": "account", "secret_access_key_file": "/unread"}


def opened(secret: str | None = "c2VjcmV0", **settings: Any) -> stores.Stores:
    return stores.open_stores(Bucket.model_validate(settings), secret)


def test_each_service_has_its_store() -> None:
    s3 = opened(url="s3://cache/a/b", **KEY)
    assert isinstance(s3.reading, S3Store)
    assert (s3.reading.prefix, s3.public) == ("a/b", None)
    assert isinstance(opened(url="az://cache", **KEY).writing, AzureStore)


def test_a_public_endpoint_is_for_signing_only() -> None:
    redirect = {"public_endpoint": "https://objects.example"}
    given = opened(url="s3://cache", endpoint="http://10.0.0.1:9000", redirect=redirect, **KEY)
    assert given.public is not None
    assert given.public.config["endpoint"] == "https://objects.example"
    assert isinstance(given.reading, S3Store)
    assert given.reading.config["endpoint"] == "http://10.0.0.1:9000"


@pytest.mark.parametrize(
    ("url", "secret"), [("gs://cache", "not JSON"), ("az://cache", "not base64!")]
)
def test_a_key_that_cannot_be_read_is_refused_and_not_shown(url: str, secret: str) -> None:
    key = {} if url.startswith("gs") else KEY
    with pytest.raises(ConfigError, match=r"storage\.bucket: ") as refused:
        opened(secret, url=url, **key)
    assert secret not in str(refused.value)


def test_without_obstore_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("proxy.storage.bucket.stores")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("proxy.storage.bucket.stores", raising=False)
    monkeypatch.setitem(sys.modules, "obstore.exceptions", None)
    with pytest.raises(ConfigError, match=r"pip install 'millpond\[bucket\]'"):
        buckets.stores(Bucket(url="s3://cache"), None)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            ("Generic S3 error: Error performing GET http://127.0.0.1:1/x/a in 292.005µs, after 1 "
            "retries, max_retries: 1, retry_timeout: 2s  - HTTP error: error sending request\n\nDebug"),
            "Error performing GET http://127.0.0.1:1/x/a",
        ),
        (
            ("The operation lacked: Error performing GET http://h/x in 2.7ms - Server returned "
            "non-2xx status code: 403 Forbidden: <?xml ?>\n<Error><Code>AccessDenied</Code>"),
            "it answers 403 Forbidden (AccessDenied)",
        ),
        ("x status code: 404 Not Found: <Error><Code>NoSuchBucket</Code>", "there is no such bucket"),
        ("", "GenericError"),
    ],
)  # fmt: skip
def test_an_error_has_the_same_words_each_time(text: str, words: str) -> None:
    assert stores.reason(GenericError(text)) == words
