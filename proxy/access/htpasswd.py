"""The htpasswd file: users with bcrypt hashes, as ``htpasswd -B`` writes them."""

import hashlib
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import bcrypt

from proxy.access.credentials import MAX_USER
from proxy.core.errors import ConfigError

MAX_PASSWORD: Final = 72
"""Bytes. bcrypt ignores the rest, so a longer password never matches."""

COST: Final = 10
"""For new hashes: about 60 ms of CPU."""

MAX_COST: Final = 14
"""A hash of this cost takes about a second. Each further one doubles that."""

_BCRYPT: Final = re.compile(r"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
"""The last character of the salt has two bits. bcrypt raises an error for a hash that has more."""

_KINDS: Final = {"$apr1$": "MD5", "{SHA}": "SHA-1", "$5$": "SHA-256 crypt", "$6$": "SHA-512 crypt"}


@dataclass(frozen=True, slots=True)
class Users:
    """Users with their hashes. ``dummy`` is a hash without a password, of the file's usual cost."""

    hashes: Mapping[str, str]
    dummy: str

    def fingerprint(self, user: str) -> str | None:
        """Return a value that changes with the user's password; None: there is no such user."""
        stored = self.hashes.get(user)
        if stored is None:
            return None
        return hashlib.blake2b(stored.encode(), digest_size=12).hexdigest()


def parse(text: str, file: Path) -> Users:
    """Return the users of a file. Raises ``ConfigError``, which names the line."""
    hashes: dict[str, str] = {}
    costs: Counter[int] = Counter()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        user, colon, stored = line.strip().partition(":")
        where = f"{file}: line {number}"
        if not colon or not user or len(user) > MAX_USER:
            raise ConfigError(f"{where}: expected user:hash, as htpasswd -B writes it")
        if user in hashes:
            raise ConfigError(f"{where}: the user {user!r} is already on another line")
        costs[_cost(stored, f"{where}: user {user!r}")] += 1
        hashes[user] = stored
    return Users(hashes, _dummy(costs.most_common(1)[0][0] if costs else COST))


def matches(users: Users, user: str, password: str) -> bool:
    """Return True if the password is right. An unknown user takes as long as a known one."""
    given, stored = password.encode(), users.hashes.get(user)
    if len(given) > MAX_PASSWORD or b"\0" in given or not given:
        return False
    is_equal = bcrypt.checkpw(given, (stored or users.dummy).encode())
    return is_equal and stored is not None


def hash_password(password: str) -> str:
    """Return the hash for a line of the file. Raises ``ConfigError`` for an unusable password."""
    given = password.encode()
    if not given or len(given) > MAX_PASSWORD or b"\0" in given:
        raise ConfigError(f"a password has 1 to {MAX_PASSWORD} bytes, without NUL")
    return bcrypt.hashpw(given, bcrypt.gensalt(COST)).decode()


def check_user(text: str, file: Path, user: str, *, is_known: bool) -> None:
    """Return if the user exists in the file's text, or not, as expected. Raises ``ConfigError``."""
    if (
        not user
        or not user.isprintable()
        or user != user.strip()
        or ":" in user
        or user.startswith("#")
    ):
        raise ConfigError(
            f"{user!r} cannot be a user name: remove colons, # and spaces at the ends"
        )
    known = parse(text, file).hashes
    if is_known and user not in known:
        raise ConfigError(f"there is no user {user!r}; millpond user ls lists them")
    if not is_known and user in known:
        raise ConfigError(f"there is a user {user!r} already; change it with millpond user passwd")


def with_user(text: str, user: str, stored: str | None) -> str:
    """Return the file's text with the user's hash replaced or added; None removes the user."""
    line = [] if stored is None else [f"{user}:{stored}"]
    kept: list[str] = []
    for old in text.splitlines():
        if old.strip().partition(":")[0] == user and not old.startswith("#"):
            kept += line
            line = []
        else:
            kept.append(old)
    return "".join(f"{entry}\n" for entry in kept + line)


def _cost(stored: str, where: str) -> int:
    found = _BCRYPT.fullmatch(stored)
    if found is None:
        kind = next((name for start, name in _KINDS.items() if stored.startswith(start)), "another")
        raise ConfigError(
            f"{where} has a hash of {kind} kind; only bcrypt is accepted: "
            "write it with htpasswd -B, or with millpond user passwd"
        )
    cost = int(found[1])
    if not 4 <= cost <= MAX_COST:
        raise ConfigError(f"{where}: the hash has cost {cost}; expected 4 to {MAX_COST}")
    return cost


def _dummy(cost: int) -> str:
    """Return a well-formed hash; no password for it is known."""
    return bcrypt.gensalt(cost).decode() + "." * 31
