"""Users and tokens for tests: files with cheap hashes, and the headers that clients send."""

import base64
import time
from pathlib import Path
from typing import Any

import bcrypt

from proxy.access import api_tokens
from proxy.access.api_tokens import APIToken


class In(int):
    """Seconds from the moment at which a claim is written."""


def dated(claims: dict[str, Any]) -> dict[str, Any]:
    """Return claims with moments in place of ``In``, and without those that are None."""
    now = int(time.time())
    moments = {name: now + v if isinstance(v, In) else v for name, v in claims.items()}
    return {name: value for name, value in moments.items() if value is not None}


def write_users(file: Path, **passwords: str) -> Path:
    """Write an htpasswd file; replacing it in one step, as the commands do."""
    lines = (
        f"{user}:{bcrypt.hashpw(password.encode(), bcrypt.gensalt(4)).decode()}\n"
        for user, password in passwords.items()
    )
    return replace(file, "".join(lines))


def write_token(file: Path, name: str, *groups: str, seconds: float | None = None) -> str:
    """Write a file with one token; return the token."""
    token = api_tokens.new_token()
    expires = None if seconds is None else time.time() + seconds
    entry = APIToken(name, api_tokens.hash_token(token), groups, expires)
    replace(file, api_tokens.render([entry]))
    return token


def replace(file: Path, text: str) -> Path:
    new = file.with_suffix(".new")
    new.write_text(text)
    return new.rename(file)


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


def bearer(token: str) -> str:
    return f"Bearer {token}"
