"""The settings of ``storage.bucket``: a second tier in object storage, which machines may share."""

import re
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from pydantic import field_validator, model_validator

from proxy.settings.units import Bytes, Section, Wait

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*")


class BucketRedirect(Section):
    """Clients that download large blobs from the bucket itself. Without this, none do."""

    public_endpoint: str
    """URL under which clients reach the bucket's service. Its host must not be the one under which
    clients reach Millpond, nor below it."""
    min_size: Bytes = 64 * 1024**2
    """Minimum size of a blob for which clients are redirected."""
    valid_for: Wait = 20 * 60.0
    """How long a redirect can be used, from one minute to one hour. A slow client must begin its
    last request within this time."""

    @field_validator("public_endpoint")
    @classmethod
    def _check_public_endpoint(cls, value: str) -> str:
        return _checked_endpoint(value)

    @field_validator("valid_for")
    @classmethod
    def _check_valid_for(cls, value: float) -> float:
        if value < 60:
            raise ValueError("too short for a pull; write 20m")
        return value


class Bucket(Section):
    """A second tier in object storage, behind the directory. Without this there is none."""

    url: str
    """The bucket, and a prefix for the names of all objects in it: `s3://bucket/prefix`, `gs://` or
    `az://`."""
    endpoint: str | None = None
    """URL of a service other than that of Amazon, Google or Azure, such as MinIO."""
    region: str | None = None
    """Region of an `s3://` bucket."""
    access_key_id: str | None = None
    """Name of the key (`s3://`), or of the storage account (`az://`). It needs
    `secret_access_key_file`. Default: the environment, or the identity of the machine."""
    secret_access_key_file: Path | None = None
    """File with the secret of `access_key_id`; for `gs://` the JSON key of a service account."""
    max_size: Bytes | None = None
    """Maximum size of the objects under the prefix. Above it the least recently used ones are
    deleted. Without it nothing is deleted."""
    min_object: Bytes = 4 * 1024
    """Smaller content is not stored in the bucket if machines share it through Redis. Without Redis
    all content is stored."""
    redirect: BucketRedirect | None = None

    @property
    def scheme(self) -> str:
        """``s3``, ``gs`` or ``az``."""
        return self.url.partition("://")[0]

    @property
    def name(self) -> str:
        """The name of the bucket or container."""
        return urlsplit(self.url).netloc

    @property
    def prefix(self) -> str:
        """What all names of objects begin with, without slashes at its ends; may be empty."""
        return urlsplit(self.url).path.strip("/")

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        scheme, _, rest = value.partition("://")
        name, _, prefix = rest.rstrip("/").partition("/")
        if scheme not in ("s3", "gs", "az") or _NAME.fullmatch(name) is None:
            raise ValueError("not a bucket; write s3://bucket/prefix, gs://… or az://…")
        if prefix and (_PREFIX.fullmatch(prefix) is None or {".", ".."} & {*prefix.split("/")}):
            raise ValueError("not a prefix; it has letters, digits, `.`, `_`, `-` and single `/`")
        return value

    @field_validator("endpoint")
    @classmethod
    def _check_endpoint(cls, value: str | None) -> str | None:
        return None if value is None else _checked_endpoint(value)

    @model_validator(mode="after")
    def _check_credentials(self) -> Self:
        has_name, has_file = self.access_key_id is not None, self.secret_access_key_file is not None
        if self.scheme == "gs" and has_name:
            raise ValueError("gs:// has no access_key_id; name a key in secret_access_key_file")
        if self.scheme != "gs" and has_name != has_file:
            raise ValueError("access_key_id and secret_access_key_file belong together")
        if self.scheme != "s3" and self.region is not None:
            raise ValueError("region is only for s3://")
        if self.scheme == "gs" and self.endpoint is not None:
            raise ValueError("gs:// has no endpoint; use s3:// with an endpoint and an HMAC key")
        if self.redirect is not None and self.scheme != "s3":
            raise ValueError("redirect is only for s3://")
        return self


def _checked_endpoint(value: str) -> str:
    """Return a URL without a slash at its end. Raises ``ValueError``."""
    try:
        url = urlsplit(value)
        is_plain = not (url.username or url.password or url.query or url.fragment or url.path[1:])
        is_url = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        is_url = is_plain = False
    if not (is_url and is_plain):
        raise ValueError("not an endpoint; write https://minio.example, without a path")
    return value.rstrip("/")
