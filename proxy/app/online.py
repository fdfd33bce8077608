"""Logs in at every registry and at the bucket, for ``check --online``. Writes nothing."""

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from proxy.app import bucket as buckets
from proxy.app.upstreams import Upstreams
from proxy.core.errors import RegistryError
from proxy.runtime.metrics import CacheCounters, Metrics
from proxy.settings import Bucket, Settings
from proxy.upstream.auth import Authorizer
from proxy.upstream.guard import SYSTEM_NETWORK
from proxy.upstream.transport import HTTPRequest, Transport

REACHED: Final = "reached"
LOGGED_IN: Final = "logged in"
FAILED: Final = "failed"
BUCKET_SECONDS: Final = 20.0
_BUCKET: Final = "storage.bucket"


@dataclass(frozen=True, slots=True)
class Login:
    """The outcome at one registry. ``detail`` contains no secret; it is empty after a success."""

    upstream: str
    url: str
    credentials: str
    result: str
    detail: str = ""


async def log_in_everywhere(settings: Settings) -> list[Login]:
    """Return the outcome for each upstream, then for the bucket. Raises ``ConfigError``."""
    upstreams = Upstreams(Metrics(()), time.time, 1, SYSTEM_NETWORK)
    plan = await upstreams.prepare(settings)
    try:
        logins = [
            _log_in(built.transport, built.authorizer, settings.timeouts.answer)
            for built in plan.built.values()
        ]
        if settings.storage.bucket is not None:
            logins.append(ask_bucket(settings.storage.bucket))
        return await asyncio.gather(*logins)
    finally:
        await upstreams.discard(plan)


async def ask_bucket(configured: Bucket) -> Login:
    """Return the outcome of listing some objects of the bucket. Raises ``ConfigError``."""
    opened = buckets.stores(configured, buckets.read_secret(configured))
    from proxy.storage.bucket.client import BucketClient  # noqa: PLC0415 - obstore

    client = BucketClient(configured.url, opened, CacheCounters())
    kind = "environment" if configured.secret_access_key_file is None else "secret_access_key_file"
    try:
        async with asyncio.timeout(BUCKET_SECONDS), aclosing(client.scan()) as pages:
            async for _ in pages:
                break
    except TimeoutError:
        return Login(_BUCKET, configured.url, kind, FAILED, "no answer in time")
    except RegistryError as error:
        problem = client.reading.problem or error.message
        return Login(_BUCKET, configured.url, kind, FAILED, problem)
    return Login(_BUCKET, configured.url, kind, LOGGED_IN)


async def _log_in(transport: Transport, authorizer: Authorizer, seconds: float) -> Login:
    """Ping a registry as ``docker login`` does: ``/v2/``, its challenge, a token, ``/v2/`` again.

    Without credentials an answer is a success: some token servers refuse without a scope.
    """
    ping = HTTPRequest("GET", transport.url / "v2" / "")
    kind, detail, result = authorizer.credentials.kind, "", FAILED
    try:
        async with asyncio.timeout(seconds):
            has_login = await authorizer.credentials.get("") is not None
            response = await (authorizer if has_login else transport).send(ping)
            await transport.drain(response)
        if response.status == 200:
            result = LOGGED_IN if has_login and authorizer.was_asked else REACHED
        elif response.status == 401 and not has_login:
            result = REACHED
        elif response.status == 401:
            detail = (await authorizer.refusal("")).message
        else:
            detail = f"{transport.url.host} answers {response.status}"
    except TimeoutError:
        detail = f"no answer within {seconds:g} seconds"
    except RegistryError as error:
        detail = transport.redactor.redact_message(error.message)
    return Login(transport.name, str(transport.url), kind, result, detail)
