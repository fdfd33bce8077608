"""Opens a bucket with obstore, once for each purpose, with time limits and few retries."""

import re
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from obstore.exceptions import BaseError
from obstore.store import AzureStore, GCSStore, ObjectStore, S3Store

from proxy.core.errors import ConfigError
from proxy.settings import Bucket

ANSWER_SECONDS: Final = 2.0
"""A request that a client waits for must be answered within this time."""

STALL_SECONDS: Final = 5.0
"""Longest pause between two pieces of a body."""

_LONGEST_REASON: Final = 200
_STATUS: Final = re.compile(r"status code: (\d{3}[A-Za-z ]*)")
_CODE: Final = re.compile(r"<Code>(\w{1,60})</Code>")
_DETAILS: Final = re.compile(
    r"^Generic \w+ error:|Error performing list request:| in [\d.]+\S?s\b|, after .*"
)


@dataclass(frozen=True, slots=True)
class Stores:
    """The bucket with the time limits for reading, for writing, and under its public endpoint."""

    reading: ObjectStore
    writing: ObjectStore
    public: S3Store | None


def open_stores(configured: Bucket, secret: str | None) -> Stores:
    """Return the stores of a bucket; nothing is sent yet. Raises ``ConfigError``."""
    public = None if configured.redirect is None else configured.redirect.public_endpoint
    try:
        return Stores(
            reading=_store(configured, secret, configured.endpoint, _bounds(STALL_SECONDS, 1, 2.0)),
            writing=_store(configured, secret, configured.endpoint, _bounds(120.0, 3, 60.0)),
            public=None if public is None else _s3(configured, secret, public, {}),
        )
    except (BaseError, ValueError, OSError) as error:
        raise ConfigError(f"storage.bucket: {reason(error)}") from None


def _bounds(read_seconds: float, retries: int, retry_seconds: float) -> dict[str, Any]:
    """Return obstore's options. ``timeout`` is for a request with its whole body."""
    return {
        "client_options": {
            "timeout": timedelta(hours=1),
            "connect_timeout": timedelta(seconds=ANSWER_SECONDS),
            "read_timeout": timedelta(seconds=read_seconds),
        },
        "retry_config": {
            "max_retries": retries,
            "retry_timeout": timedelta(seconds=retry_seconds),
            "backoff": {
                "init_backoff": timedelta(milliseconds=50),
                "max_backoff": timedelta(seconds=1),
                "base": 2,
            },
        },
    }


def _store(
    configured: Bucket, secret: str | None, endpoint: str | None, bounds: dict[str, Any]
) -> ObjectStore:
    match configured.scheme:
        case "s3":
            return _s3(configured, secret, endpoint, bounds)
        case "gs":
            given: Any = {} if secret is None else {"service_account_key": secret}
            return GCSStore(
                configured.name, prefix=configured.prefix or None, config=given, **bounds
            )
    named = {"account_name": configured.access_key_id, "account_key": secret, "endpoint": endpoint}
    given = {key: value for key, value in named.items() if value is not None}
    return AzureStore(
        configured.name, prefix=configured.prefix or None, config=given, **_plain(bounds, endpoint)
    )


def _s3(
    configured: Bucket, secret: str | None, endpoint: str | None, bounds: dict[str, Any]
) -> S3Store:
    named = {
        "access_key_id": configured.access_key_id,
        "secret_access_key": secret,
        "region": configured.region,
        "endpoint": endpoint,
    }
    given: Any = {key: value for key, value in named.items() if value is not None}
    return S3Store(
        configured.name, prefix=configured.prefix or None, config=given, **_plain(bounds, endpoint)
    )


def _plain(bounds: dict[str, Any], endpoint: str | None) -> dict[str, Any]:
    """Return the options for an endpoint, which may have no TLS."""
    if endpoint is None or not endpoint.startswith("http:"):
        return bounds
    return bounds | {"client_options": bounds.get("client_options", {}) | {"allow_http": True}}


def reason(error: BaseException) -> str:
    """Return a stable message for an error of obstore."""
    text = str(error)
    if "NoSuchBucket" in text:
        return "there is no such bucket"
    status, code = _STATUS.search(text), _CODE.search(text)
    if status is not None:
        return f"it answers {status[1].strip()}" + (f" ({code[1]})" if code else "")
    line = _DETAILS.sub("", text.partition("\n")[0]).strip(" -:,")
    return line[:_LONGEST_REASON] or type(error).__name__
