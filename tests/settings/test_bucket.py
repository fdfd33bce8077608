"""The settings of ``storage.bucket``: valid values, and error messages."""

from typing import Any

import pytest
from pydantic import ValidationError

from proxy.settings import Bucket

S3 = {"url": "s3://cache/millpond"}
KEY = {"access_key_id": "a", "secret_access_key_file": "/etc/secret"}


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        ({"url": "s3://cache"}, ("s3", "cache", "")),
        ({"url": "s3://cache/"}, ("s3", "cache", "")),
        ({"url": "s3://my.cache-1/a/b_c/"}, ("s3", "my.cache-1", "a/b_c")),
        ({"url": "gs://cache/x", "secret_access_key_file": "/k.json"}, ("gs", "cache", "x")),
        ({"url": "az://cache/x"} | KEY, ("az", "cache", "x")),
        (
            S3 | KEY | {"endpoint": "http://minio:9000/", "region": "eu"},
            ("s3", "cache", "millpond"),
        ),
        (S3 | {"redirect": {"public_endpoint": "https://o.example"}}, ("s3", "cache", "millpond")),
    ],
)
def test_a_bucket_and_its_prefix(given: dict[str, Any], parts: tuple[str, str, str]) -> None:
    bucket = Bucket.model_validate(given)
    assert (bucket.scheme, bucket.name, bucket.prefix) == parts


def test_an_endpoint_loses_its_last_slash() -> None:
    assert Bucket.model_validate(S3 | {"endpoint": "https://o.example/"}).endpoint == (
        "https://o.example"
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "url"),
        ({"url": "cache"}, "not a bucket"),
        ({"url": "ftp://cache"}, "not a bucket"),
        ({"url": "s3://"}, "not a bucket"),
        ({"url": "s3://Cache"}, "not a bucket"),
        ({"url": "s3://user:pw@cache"}, "not a bucket"),
        ({"url": "s3://cache/../x"}, "not a prefix"),
        ({"url": "s3://cache/a//b"}, "not a prefix"),
        ({"url": "s3://cache/a?b"}, "not a prefix"),
        (S3 | {"access_key_id": "a"}, "belong together"),
        (S3 | {"secret_access_key_file": "/k"}, "belong together"),
        ({"url": "gs://cache"} | KEY, "gs:// has no access_key_id"),
        ({"url": "gs://cache", "endpoint": "https://o.example"}, "gs:// has no endpoint"),
        ({"url": "az://cache", "region": "eu"}, "region is only for s3://"),
        (S3 | {"endpoint": "minio:9000"}, "not an endpoint"),
        (S3 | {"endpoint": "https://o.example/path"}, "not an endpoint"),
        (S3 | {"endpoint": "https://u:p@o.example"}, "not an endpoint"),
        (S3 | {"endpoint": "https://o.example:99999"}, "not an endpoint"),
        (S3 | {"max_size": "80%"}, "not a size"),
        (S3 | {"min_object": 0}, "min_object"),
        (S3 | {"redirect": {}}, "public_endpoint"),
        (S3 | {"redirect": {"public_endpoint": "o.example"}}, "not an endpoint"),
        (S3 | {"redirect": {"public_endpoint": "https://o", "valid_for": "5s"}}, "too short"),
        (S3 | {"redirect": {"public_endpoint": "https://o", "valid_for": "2h"}}, "valid_for"),
        (
            {"url": "az://cache", "redirect": {"public_endpoint": "https://o"}},
            "redirect is only for s3://",
        ),
        (S3 | {"secret_access_key": "never in a configuration"}, "Extra inputs"),
    ],
)
def test_what_is_refused_says_why(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Bucket.model_validate(given)
