"""Finds and removes the parts of uploads that were never completed: S3 charges for them.

obstore cannot list them, so botocore does, imported only here. Google needs a lifecycle rule for it
(``docs/operating.md``), and Azure removes such parts after a week.
"""

import importlib
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import structlog

from proxy.core.names import Digest
from proxy.settings import Bucket

ABANDONED_SECONDS: Final = 3600.0
"""An upload that began longer ago is abandoned, whichever machine began it."""

log = structlog.get_logger(__name__)


def sweep(
    configured: Bucket,
    secret: str | None,
    begun_here: Collection[Digest],
    running: Collection[Digest],
) -> int:
    """Remove abandoned uploads, and those that this machine began before its last start.

    Those of ``running`` objects stay.

    Returns their number; 0 where there is nothing to do. Blocks. Failures are logged.
    """
    if configured.scheme != "s3":
        return 0
    try:
        botocore = importlib.import_module("botocore.session")
    except ImportError:
        log.warning("abandoned uploads are not removed: botocore is not installed")
        return 0
    try:
        client = _client(botocore, configured, secret)
        spared = {_key(configured, digest) for digest in running}
        own = {_key(configured, digest) for digest in begun_here}
        return sum(
            _abort(client, configured, one)
            for one in _found(client, configured, own)
            if one["Key"] not in spared
        )
    except Exception as error:  # botocore has many kinds of them
        log.warning("abandoned uploads cannot be removed", error=f"{type(error).__name__}: {error}")
        return 0


def _client(botocore: Any, configured: Bucket, secret: str | None) -> Any:
    config = importlib.import_module("botocore.config").Config(
        connect_timeout=2, read_timeout=5, retries={"total_max_attempts": 1}
    )
    session = botocore.Session()
    return session.create_client(
        "s3",
        region_name=configured.region or session.get_config_variable("region") or "us-east-1",
        endpoint_url=configured.endpoint,
        aws_access_key_id=configured.access_key_id,
        aws_secret_access_key=secret,
        config=config,
    )


def _found(client: Any, configured: Bucket, own: Collection[str]) -> Iterator[Any]:
    oldest = datetime.now(UTC) - timedelta(seconds=ABANDONED_SECONDS)
    for page in client.get_paginator("list_multipart_uploads").paginate(
        Bucket=configured.name, Prefix=_key(configured)
    ):
        for upload in page.get("Uploads", ()):
            if upload["Key"] in own or upload["Initiated"] < oldest:
                yield upload


def _key(configured: Bucket, digest: str = "") -> str:
    """Return the name of an object, or the prefix of all names."""
    return "/".join(filter(None, (configured.prefix, "blobs", digest.replace(":", "/"))))


def _abort(client: Any, configured: Bucket, upload: Any) -> int:
    client.abort_multipart_upload(
        Bucket=configured.name, Key=upload["Key"], UploadId=upload["UploadId"]
    )
    return 1
