"""Our own tokens by themselves: each check once, also where another module checks again."""

from pathlib import Path
from typing import Any

import jwt
import pytest

from proxy.access import own_tokens
from proxy.access.keys import Keys
from proxy.access.own_tokens import MAX_TOKEN, OwnTokens
from proxy.core.errors import Unauthorized
from tests.access.people import In, dated

REPOSITORY = {"type": "repository", "name": "a", "actions": ["pull"], "target": "docker.io/a"}


@pytest.fixture
def own(tmp_path: Path) -> OwnTokens:
    return OwnTokens(Keys(tmp_path / "keys.json"), 300)


def signed(own: OwnTokens, **changes: Any) -> str:
    """Return an anonymous token with other claims and our signature."""
    token, _ = own.issue(None, [])
    claims = jwt.decode(token, options={"verify_signature": False})
    key = own._keys.current
    return jwt.encode(claims | dated(changes), key.private, "ES256", {"kid": key.kid})


def test_a_token_names_the_repositories_that_it_is_for(own: OwnTokens) -> None:
    entries = [
        {"type": "registry", "name": "catalog", "actions": ["*"]},
        REPOSITORY | {"type": "registry", "target": "docker.io/d"},
        REPOSITORY,
        REPOSITORY | {"actions": ["push"], "target": "docker.io/b"},
        REPOSITORY | {"actions": [], "target": "docker.io/c"},
    ]
    token, _ = own.issue(None, entries)
    assert own.verify(token).scopes == {"docker.io/a"}


def test_an_oversized_token_is_not_parsed(own: OwnTokens) -> None:
    large = signed(own, padding="x" * MAX_TOKEN)
    assert not own.is_own(large)
    with pytest.raises(Unauthorized, match="not from this registry"):
        own.verify(large)


@pytest.mark.parametrize("step", [{"nbf": In(3)}, {"iat": In(3)}, {"exp": In(-2)}], ids=str)
def test_the_clock_may_step_a_little(
    own: OwnTokens, monkeypatch: pytest.MonkeyPatch, step: dict[str, Any]
) -> None:
    monkeypatch.setattr(own_tokens, "LEEWAY", 30)  # so that a slow machine does not matter
    own.verify(signed(own, **step))
    monkeypatch.setattr(own_tokens, "LEEWAY", 0)
    with pytest.raises(Unauthorized):
        own.verify(signed(own, **{name: In(-60 if name == "exp" else 60) for name in step}))
