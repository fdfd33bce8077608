"""The authentication of senders of webhooks. All comparisons take constant time."""

import base64
import binascii
import hashlib
import hmac
from collections.abc import Callable, Iterable, Sequence
from typing import Final, NamedTuple

from proxy.services.hooks.delivery import Headers

LONGEST_AGE: Final = 300.0
"""Seconds by which the time in a signature may differ from ours (Standard Webhooks)."""


class SentCredentials(NamedTuple):
    """The credentials of a sender: headers, the parameter ``token`` of the URL, the body.

    ``now`` is Unix seconds.
    """

    headers: Headers
    token: str
    body: bytes
    now: float


SecretCheck = Callable[[SentCredentials, bytes], bool]
"""Returns True if a sender has proven that it knows a secret."""


def is_authentic(
    sent: SentCredentials, checks: Iterable[SecretCheck], secrets: Sequence[bytes]
) -> bool:
    """Return True if one of the checks succeeds with one of the secrets."""
    held = [check(sent, secret) for check in checks for secret in secrets]
    return any(held)


def token_in_url(sent: SentCredentials, secret: bytes) -> bool:
    """Return True if ``?token=`` is the secret, for senders that support nothing but a URL."""
    return _is_equal(sent.token, secret)


def authorization(sent: SentCredentials, secret: bytes) -> bool:
    """Return True if ``Authorization`` is the secret, or ``Bearer`` with it."""
    given = sent.headers.get("Authorization", "")
    return _is_equal(given, secret) | _is_equal(given, b"Bearer " + secret)


def gitlab_token(sent: SentCredentials, secret: bytes) -> bool:
    """Return True if ``X-Gitlab-Token`` is the secret."""
    return _is_equal(sent.headers.get("X-Gitlab-Token", ""), secret)


def github_signature(sent: SentCredentials, secret: bytes) -> bool:
    """Return True if ``X-Hub-Signature-256`` is the HMAC of the body."""
    expected = "sha256=" + hmac.new(secret, sent.body, hashlib.sha256).hexdigest()
    return _is_equal(sent.headers.get("X-Hub-Signature-256", ""), expected.encode())


def standard_signature(sent: SentCredentials, secret: bytes) -> bool:
    """Return True for a fresh signature of Standard Webhooks (https://www.standardwebhooks.com)."""
    headers = sent.headers
    number, time = headers.get("webhook-id", ""), headers.get("webhook-timestamp", "")
    if not number or not time.isascii() or not time.isdigit() or len(time) > 12:
        return False
    signed = f"{number}.{time}.".encode("utf-8", "surrogateescape") + sent.body
    code = base64.b64encode(hmac.new(_key(secret), signed, hashlib.sha256).digest())
    given = headers.get("webhook-signature", "").split()[:10]
    matches = [_is_equal(one, b"v1," + code) for one in given]
    return any(matches) and abs(sent.now - int(time)) <= LONGEST_AGE


def _key(secret: bytes) -> bytes:
    """Return the key of a secret: Base64 after ``whsec_``, else its bytes."""
    if not secret.startswith(b"whsec_"):
        return secret
    try:
        return base64.b64decode(secret.removeprefix(b"whsec_"), validate=True)
    except binascii.Error:
        return secret


def _is_equal(given: str, secret: bytes) -> bool:
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), secret)
