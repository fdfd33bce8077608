"""Builds the receivers of events from the settings, with the files that these name."""

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from proxy.core.errors import ConfigError, RegistryError
from proxy.core.routing import Router
from proxy.runtime.events import EventKind
from proxy.services.notifications.formats import FORMATS
from proxy.services.notifications.receivers import Receiver
from proxy.services.notifications.signing import read_secrets
from proxy.settings import Settings
from proxy.settings.notifications import Notification

Result = TypeVar("Result")
_MAX_BYTES = 64 * 1024


def receivers(settings: Settings, router: Router) -> list[Receiver]:
    """Return the receivers of the settings. Blocks. Raises ``ConfigError``."""
    return [
        _receiver(f"notifications.{number}", one, router)
        for number, one in enumerate(settings.notifications)
    ]


def _receiver(key: str, configured: Notification, router: Router) -> Receiver:
    try:
        images = tuple(router.parse_selector(image) for image in configured.images)
    except RegistryError as error:
        raise ConfigError(f"{key}.images: {error.message}") from None
    signer = _read(f"{key}.secret_file", configured.secret_file, read_secrets)
    return Receiver(
        configured.label,
        configured.url.get_secret_value(),
        frozenset(map(EventKind, configured.kinds)),
        images,
        FORMATS[configured.format],
        signer,
        _read(f"{key}.authorization_file", configured.authorization_file, _header),
        _context(f"{key}.ca_file", configured.ca_file),
        configured.timeout,
        configured.retry_for,
        configured.max_queue,
    )


def _read(key: str, file: Path | None, parse: Callable[[str], Result]) -> Result | None:
    """Return the parsed content of a file with a secret. Raises ``ConfigError``."""
    if file is None:
        return None
    try:
        with file.open("rb") as opened:
            return parse(opened.read(_MAX_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"{key}: {file} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{key}: {file} is not UTF-8 text") from None
    except ValueError as error:
        raise ConfigError(f"{key}: {file}: {error}") from None


def _header(text: str) -> str:
    value = text.strip()
    if not value or not value.isascii() or not value.isprintable():
        raise ValueError("it must have one line, the value of Authorization, such as: Bearer TOKEN")
    return value


def _context(key: str, file: Path | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if file is not None:
            context.load_verify_locations(file)
    except OSError as error:
        raise ConfigError(f"{key}: {file} cannot be used: {error.strerror or error}") from None
    return context
