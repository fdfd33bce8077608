"""Checks settings against this machine, for ``serve`` and ``check``; changes nothing.

``settings`` has validated the values; this checks the files that they name, the pins, the listen
address and the cache's directory.
"""

import os
import socket
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from proxy.access import review
from proxy.access.rules import Rules
from proxy.app import bucket as buckets
from proxy.app import tracing
from proxy.app.image_updates import parse_plan
from proxy.app.issuers import issuer_context
from proxy.app.notifications import receivers
from proxy.core.errors import ConfigError, RegistryError
from proxy.core.routing import Router
from proxy.core.units import show_size
from proxy.policies.rules import compile_rules
from proxy.settings import Settings
from proxy.upstream.credentials.choosing import check_credentials
from proxy.upstream.transport import client_context
from proxy.web.certificate import Certificate

MIN_SIZE: Final = 1024 * 1024
"""Bytes. A smaller cache holds almost no image: probably the unit is missing."""

MIN_SECRET: Final = 16
"""Minimum length of a webhook's secret in characters: anyone may try to guess it."""


def validate(settings: Settings) -> None:
    """Return if the settings work on this machine. Raises ``ConfigError``, a line per fault."""
    found = [fault for check in _CHECKS for fault in check(settings)]
    if found:
        raise ConfigError("\n".join(found))


def validate_writable(settings: Settings) -> None:
    """Return if this user may write to the cache's directory and the audit log.

    Raises ``ConfigError``.

    A reload skips this check: a disk that became read-only must not block new credentials.
    """
    path = settings.storage.path
    nearest = next(part for part in (path, *path.parents) if part.exists())
    if not os.access(nearest, os.W_OK | os.X_OK, effective_ids=True):
        raise ConfigError(
            f"storage.path: {nearest} cannot be written by this user; "
            "choose a directory that this user may write, with --storage DIR"
        )
    file = settings.access.audit_file
    if file is not None:
        nearest = file if file.exists() else file.parent
        if not os.access(nearest, os.W_OK, effective_ids=True):
            raise ConfigError(f"access.audit_file: {nearest} cannot be written by this user")


def warnings(settings: Settings) -> Iterator[str]:
    """Yield faults that do not affect serving: of rules, and of files that other commands read."""
    yield from review.warnings(settings)
    bundles = settings.bundles
    if not bundles.trusted_keys and bundles.signing_key_file is None:
        return
    from proxy.services.bundle import signatures  # noqa: PLC0415 - cryptography, for bundles only

    for path in bundles.trusted_keys:
        for fault in _refusal(lambda path=path: signatures.read_public_keys(path)):  # type: ignore[misc]
            yield f"bundles.trusted_keys: {fault}; import refuses every bundle"
    if (key := bundles.signing_key_file) is not None:
        for fault in _refusal(lambda: signatures.read_private_key(key)):
            yield f"bundles.signing_key_file: {fault}; export cannot sign"


def _size(settings: Settings) -> Iterator[str]:
    size = settings.storage.max_size
    if not size.share and size.bytes < MIN_SIZE:
        yield (
            f"storage.max_size: {size} holds no image; write at least {show_size(MIN_SIZE)}, "
            "for example 50GiB"
        )


def _pins(settings: Settings) -> Iterator[str]:
    router = Router(settings)
    for pin in settings.pins:
        try:
            router.parse_pin(pin)
        except RegistryError as error:
            yield f"pins: {error.message}"


def _image_updates(settings: Settings) -> Iterator[str]:
    yield from _refusal(lambda: parse_plan(settings, Router(settings)))


def _hooks(settings: Settings) -> Iterator[str]:
    """Yield faults of the upstreams and secrets of webhooks."""
    for name, hook in settings.hooks.items():
        key, upstream = f"hooks.{name}", settings.upstreams.get(hook.registry)
        if upstream is None:
            yield f"{key}.upstream: {hook.registry} is not among the upstreams"
        elif upstream.asks_as_caller:
            yield (
                f"{key}.upstream: {hook.registry} is asked only as its clients "
                "(credentials: caller), and a webhook has none"
            )
        unreadable = list(_unreadable(f"{key}.secret_file", hook.secret_file))
        yield from unreadable
        secrets = [] if unreadable else hook.secret_file.read_bytes().splitlines()
        if any(0 < len(secret.strip()) < MIN_SECRET for secret in secrets):
            yield f"{key}.secret_file: the secret is too short; {MIN_SECRET} characters or more"


def _notifications(settings: Settings) -> Iterator[str]:
    yield from _refusal(lambda: receivers(settings, Router(settings)))


def _rules(settings: Settings) -> Iterator[str]:
    yield from _refusal(lambda: Rules(settings.access, Router(settings).parse_selector))
    yield from review.faults(settings.access)


def _credentials(settings: Settings) -> Iterator[str]:
    """Yield faults of the sources of users."""
    access = settings.access
    if not access.is_configured:
        return
    from proxy.access import sources  # noqa: PLC0415 - bcrypt and PyJWT, for access control only

    yield from _refusal(lambda: sources.users_of(access))
    yield from _refusal(lambda: sources.tokens_of(access))
    for issuer in access.oidc:
        yield from _refusal(lambda issuer=issuer: issuer_context(issuer))  # type: ignore[misc]


def _certificate(settings: Settings) -> Iterator[str]:
    tls, clients = settings.tls, settings.access.client_certificates
    if tls is not None:
        ca_file = None if clients is None else clients.ca_file
        yield from _refusal(lambda: Certificate(tls, ca_file))
    elif clients is not None:
        yield "access.client_certificates: clients send certificates over TLS only; set tls"


def _upstream_files(settings: Settings) -> Iterator[str]:
    for name, upstream in settings.upstreams.items():
        tls = upstream.tls
        yield from _refusal(lambda name=name, tls=tls: client_context(name, tls))  # type: ignore[misc]
        yield from _refusal(lambda name=name, up=upstream: check_credentials(name, up))  # type: ignore[misc]
        for key, file in upstream.secret_files():
            yield from _unreadable(f"upstreams.{name}.{key}", file)


def _policies(settings: Settings) -> Iterator[str]:
    yield from _refusal(lambda: compile_rules(settings.policies, Router(settings).parse_selector))


def _bucket(settings: Settings) -> Iterator[str]:
    """Yield a fault if the secret cannot be read, or obstore is missing or refuses a setting."""
    bucket = settings.storage.bucket
    if bucket is not None:
        yield from _refusal(lambda: buckets.stores(bucket, buckets.read_secret(bucket)))


def _token_file(settings: Settings) -> Iterator[str]:
    if settings.admin.token_file is not None:
        yield from _unreadable("admin.token_file", settings.admin.token_file)


def _audit_file(settings: Settings) -> Iterator[str]:
    """Yield a fault if there is no directory for the audit log, or no file can be there."""
    file = settings.access.audit_file
    try:
        if file is not None and not file.parent.is_dir():
            yield f"access.audit_file: {file.parent} is not a directory; create it"
        elif file is not None and file.exists() and not file.is_file():
            yield f"access.audit_file: {file} is not a regular file"
    except OSError as error:
        yield f"access.audit_file: {file} cannot be used: {error.strerror}"


def _address(settings: Settings) -> Iterator[str]:
    """Yield a fault if the address is not this machine's; its port may already be in use."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        with socket.socket(family) as trial:
            trial.bind((settings.host, 0))
    except OSError as error:
        yield (
            f"listen: {settings.listen} cannot be listened on: {error.strerror or error}; "
            "choose another address with --listen HOST:PORT"
        )


def _directory(settings: Settings) -> Iterator[str]:
    """Yield a fault if part of the cache's path exists and is not a directory."""
    path = settings.storage.path
    for part in (path, *path.parents):
        try:
            if part.is_dir():
                return
            if part.exists():
                yield f"storage.path: {part} is not a directory"
                return
        except OSError as error:
            yield f"storage.path: {part} cannot be used: {error.strerror}"
            return


def _fallback(settings: Settings) -> Iterator[str]:
    """Yield a fault for a file; a missing directory may be mounted later."""
    for path in settings.fallback:
        try:
            if path.exists() and not path.is_dir():
                yield f"fallback: {path} is not a directory"
        except OSError as error:
            yield f"fallback: {path} cannot be used: {error.strerror}"


def _fleet(settings: Settings) -> Iterator[str]:
    fleet = settings.fleet
    if fleet.redis is None and (fleet.secret_file or fleet.advertise):
        yield "fleet: replicas find each other in Redis; set fleet.redis too"
    if fleet.redis is not None and find_spec("redis") is None:
        yield (
            "fleet.redis: the library for it is not installed; "
            "install it with: pip install 'millpond[fleet]'"
        )
    if fleet.secret_file is not None:
        yield from _unreadable("fleet.secret_file", fleet.secret_file)


def _tracing(settings: Settings) -> Iterator[str]:
    yield from tracing.problems(settings.tracing)


def _refusal(build: Callable[[], object]) -> Iterator[str]:
    """Yield the message of the ``ConfigError`` that ``build`` raises."""
    try:
        build()
    except ConfigError as error:
        yield str(error)


def _unreadable(key: str, file: Path) -> Iterator[str]:
    """Yield why a file with a secret cannot be used, without showing the secret."""
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        yield f"{key}: {file} cannot be read: {reason}"
        return
    if not text.strip():
        yield f"{key}: {file} is empty"


_CHECKS: Final[tuple[Callable[[Settings], Iterable[str]], ...]] = (
    _size,
    _pins,
    _image_updates,
    _hooks,
    _notifications,
    _rules,
    _certificate,
    _credentials,
    _upstream_files,
    _policies,
    _bucket,
    _token_file,
    _audit_file,
    _directory,
    _fallback,
    _fleet,
    _tracing,
    _address,
)
