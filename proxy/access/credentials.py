"""Parses the value of ``Authorization``: Basic (RFC 7617) and Bearer (RFC 6750)."""

import base64
import binascii
from dataclasses import dataclass, field
from typing import Final

from proxy.core.errors import Unauthorized

MAX_LENGTH: Final = 16 * 1024
"""Characters of a credential. ID tokens that list many groups are some kilobytes long."""

MAX_USER: Final = 256


@dataclass(frozen=True, slots=True)
class Basic:
    """A user name and a password, which may also be a token."""

    user: str
    password: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Bearer:
    """A token."""

    token: str = field(repr=False)


def parse(authorization: str | None) -> Basic | Bearer | None:
    """Return the credentials, None if there are none. Raises ``Unauthorized`` if malformed.

    Podman and skopeo send ``Basic Og==``, an empty user and password, if they have no login.
    """
    if authorization is None:
        return None
    if len(authorization) > MAX_LENGTH:
        raise Unauthorized("the credentials are too long")
    scheme, _, value = authorization.strip().partition(" ")
    match scheme.lower():
        case "":
            return None
        case "basic":
            return _basic(value.strip())
        case "bearer":
            return _bearer(value.strip())
        case _:
            raise Unauthorized("this registry accepts Basic and Bearer credentials only")


def is_jwt(text: str) -> bool:
    """Return True if a text has the form of a signed token (RFC 7515 §3.1)."""
    return text.startswith("eyJ") and text.count(".") == 2 and text.isascii()


def basic(user: str, password: str) -> Basic | None:
    """Return the credentials, None if both are empty. Raises ``Unauthorized`` if malformed."""
    if not user and not password:
        return None
    if len(user) > MAX_USER or len(password) > MAX_LENGTH or not _is_text(user + password):
        raise Unauthorized("the user name or the password is malformed")
    return Basic(user, password)


def _basic(value: str) -> Basic | None:
    try:
        decoded = base64.b64decode(value, validate=True).decode()
    except (binascii.Error, ValueError):
        raise Unauthorized("the Basic credentials are malformed") from None
    user, colon, password = decoded.partition(":")
    if not colon:
        raise Unauthorized("the Basic credentials are malformed")
    return basic(user, password)


def _bearer(value: str) -> Bearer:
    if not value or not value.isascii() or not value.isprintable() or " " in value:
        raise Unauthorized("the Bearer token is malformed")
    return Bearer(value)


def _is_text(text: str) -> bool:
    """Return True if the text has no control characters (RFC 7617 §2)."""
    return not any(character < " " or character == "\x7f" for character in text)
