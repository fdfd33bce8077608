import json

import pytest

from proxy.core import errors
from proxy.core.errors import RegistryError

CODES = {
    "NAME_INVALID", "TAG_INVALID", "DIGEST_INVALID", "PAGINATION_NUMBER_INVALID", "NAME_UNKNOWN",
    "MANIFEST_UNKNOWN", "BLOB_UNKNOWN", "MANIFEST_INVALID", "UNAUTHORIZED", "DENIED",
    "UNSUPPORTED", "TOOMANYREQUESTS", "UNAVAILABLE", "RANGE_INVALID", "UNKNOWN",
}  # fmt: skip


def table() -> list[type[RegistryError]]:
    found = [RegistryError]
    for error in found:
        found.extend(error.__subclasses__())
    return found


def made(kind: type[RegistryError]) -> RegistryError:
    if kind is errors.PolicyDenied:
        return errors.PolicyDenied("no", policy="signed")
    if kind is errors.HeldBack:
        return errors.HeldBack("no", until=None)
    return errors.RangeInvalid("no", size=7) if kind is errors.RangeInvalid else kind("no")


@pytest.mark.parametrize("kind", table(), ids=lambda kind: kind.__name__)
def test_every_error_renders_as_an_oci_document(kind: type[RegistryError]) -> None:
    error = made(kind)
    [entry] = json.loads(error.body())["errors"]
    assert entry["code"] in CODES
    assert entry["message"] == "no"
    assert 400 <= error.status < 600
    own_challenge = kind is errors.Unauthorized
    assert ("WWW-Authenticate" in error.headers()) is own_challenge


@pytest.mark.parametrize("kind", table(), ids=lambda kind: kind.__name__)
def test_t27_absence_and_failure_never_share_a_status(kind: type[RegistryError]) -> None:
    assert issubclass(kind, errors.NotFound) == (kind.status == 404)
    if issubclass(kind, errors.UpstreamFailure):
        assert kind.status in (429, 502, 504, 508)


def test_headers_that_belong_to_an_error() -> None:
    assert errors.TooManyRequests("x", retry_after=12.4).headers() == {"Retry-After": "12"}
    assert errors.TooManyRequests("x", retry_after=0).headers() == {"Retry-After": "1"}
    assert errors.Unsupported("x").headers() == {"Allow": "GET, HEAD"}
    assert errors.RangeInvalid("x", size=10).headers() == {"Content-Range": "bytes */10"}
