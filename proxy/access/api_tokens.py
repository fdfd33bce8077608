"""The tokens file: access tokens with a name, groups and an expiry date.

The file has the SHA-256 of each token and never the token. No slow hash is needed, because tokens
are random.
"""

import hashlib
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import yaml

from proxy.core.errors import ConfigError

PREFIX: Final = "mp_"
"""Begins every token, so that secret scanners find tokens, and a token differs from a password."""

RANDOM_BYTES: Final = 24
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@/-]{0,127}")
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_KEYS: Final = {"name", "sha256", "groups", "expires"}
_HEAD: Final = "# Access tokens of Millpond; `millpond token` writes this file.\n"


@dataclass(frozen=True, slots=True)
class APIToken:
    """An entry of the file. ``expires`` is in Unix seconds; None: never."""

    name: str
    sha256: str
    groups: tuple[str, ...] = ()
    expires: float | None = None

    @property
    def has_expired(self) -> bool:
        """Return True if the token is no longer valid."""
        return self.expires is not None and time.time() >= self.expires

    @property
    def fingerprint(self) -> str:
        """A value that changes if the token of this name or its groups change."""
        text = " ".join((self.sha256, *sorted(self.groups)))
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


@dataclass(frozen=True, slots=True)
class APITokens:
    """The tokens of a file."""

    by_hash: Mapping[str, APIToken]
    by_name: Mapping[str, APIToken]

    def find(self, token: str) -> APIToken | None:
        """Return the entry of a token that has not expired.

        The lookup is by hash. Its time may depend on the hash, which does not reveal the token.
        """
        found = self.by_hash.get(hash_token(token))
        return None if found is None or found.has_expired else found


def parse(text: str, file: Path) -> APITokens:
    """Return the tokens of a file. Raises ``ConfigError``, which names the entry."""
    try:
        document = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date like 13-45
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f": line {mark.line + 1}"
        raise ConfigError(f"{file}{line}: not YAML") from None
    entries = [] if document is None else document
    if not isinstance(entries, list):
        raise ConfigError(f"{file}: expected a list of tokens, as millpond token writes it")
    tokens = [_entry(entry, f"{file}: entry {n}") for n, entry in enumerate(entries, 1)]
    by_name = {token.name: token for token in tokens}
    by_hash = {token.sha256: token for token in tokens}
    if len(by_name) < len(tokens) or len(by_hash) < len(tokens):
        raise ConfigError(f"{file}: two tokens have the same name or the same sha256")
    return APITokens(by_hash, by_name)


def render(tokens: Iterable[APIToken]) -> str:
    """Return the text of a file with these tokens."""
    entries = [
        {
            "name": token.name,
            "sha256": token.sha256,
            **({"groups": list(token.groups)} if token.groups else {}),
            **({"expires": _moment(token.expires)} if token.expires is not None else {}),
        }
        for token in tokens
    ]
    return _HEAD + (yaml.safe_dump(entries, sort_keys=False) if entries else "[]\n")


def new_token() -> str:
    """Return a random token."""
    return PREFIX + secrets.token_urlsafe(RANDOM_BYTES)


def hash_token(token: str) -> str:
    """Return the hash that the file has of a token."""
    return hashlib.sha256(token.encode()).hexdigest()


def is_name(text: str) -> bool:
    """Return True if a token may have this name."""
    return _NAME.fullmatch(text) is not None


def _entry(entry: Any, where: str) -> APIToken:
    if not isinstance(entry, dict) or not _KEYS.issuperset(entry):
        raise ConfigError(f"{where}: expected name, sha256, groups and expires")
    name, sha256, groups = entry.get("name"), entry.get("sha256"), entry.get("groups") or []
    if not isinstance(name, str) or not is_name(name):
        raise ConfigError(f"{where}: name must be letters, digits and . _ @ / -")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ConfigError(f"{where}: sha256 of {name!r} must be 64 hexadecimal digits")
    if not isinstance(groups, list) or not all(isinstance(group, str) for group in groups):
        raise ConfigError(f"{where}: groups of {name!r} must be a list of names")
    return APIToken(
        name, sha256, tuple(groups), _expiry(entry.get("expires"), f"{where}: {name!r}")
    )


def _expiry(value: object, where: str) -> float | None:
    """Return Unix seconds of a YAML timestamp, in UTC unless it says otherwise."""
    match value:
        case None:
            return None
        case datetime():
            moment = value
        case date():
            moment = datetime(value.year, value.month, value.day, tzinfo=UTC)
        case _:
            raise ConfigError(f"{where}: expires must be a time like 2027-01-31T12:00:00Z")
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(int(seconds), UTC)
