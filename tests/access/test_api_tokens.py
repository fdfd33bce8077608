import time
from pathlib import Path

import pytest

from proxy.access import api_tokens
from proxy.access.api_tokens import APIToken
from proxy.core.errors import ConfigError

FILE = Path("/etc/millpond/tokens.yaml")
HASH = "a" * 64


def test_what_is_written_is_read_again() -> None:
    tokens = [
        APIToken("ci", "1" * 64, ("dev", "ops"), 2_000_000_000.0),
        APIToken("plain", "2" * 64),
    ]
    assert list(api_tokens.parse(api_tokens.render(tokens), FILE).by_name.values()) == tokens
    assert not api_tokens.parse(api_tokens.render([]), FILE).by_name
    assert not api_tokens.parse("", FILE).by_name


def test_tokens_are_random_and_recognizable() -> None:
    made = {api_tokens.new_token() for _ in range(100)}
    assert len(made) == 100
    assert all(token.startswith("mp_") and len(token) >= 3 + 128 // 6 for token in made)


def test_a_token_is_found_until_it_expires() -> None:
    token, now = api_tokens.new_token(), time.time()
    sha256 = api_tokens.hash_token(token)
    for expires, is_found in ((None, True), (now + 3600, True), (now - 1, False)):
        entry = APIToken("ci", sha256, (), expires)
        found = api_tokens.parse(api_tokens.render([entry]), FILE).find(token)
        assert (found is not None) is is_found
    assert api_tokens.parse(api_tokens.render([entry]), FILE).find(token + "x") is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "not YAML"),
        ("name: x", "a list"),
        ("- x", "entry 1"),
        (f"- {{name: x, sha256: {HASH}, colour: red}}", "entry 1"),
        (f"- {{sha256: {HASH}}}", "name"),
        (f"- {{name: 'a b', sha256: {HASH}}}", "name"),
        ("- {name: x, sha256: mp_secret}", "64 hexadecimal"),
        (f"- {{name: x, sha256: {HASH}, groups: dev}}", "groups"),
        (f"- {{name: x, sha256: {HASH}, expires: soon}}", "expires"),
        (f"- {{name: x, sha256: {HASH}, expires: 2027-13-01}}", "not YAML"),
        ("[" * 5000, "not YAML"),
        (f"- {{name: x, sha256: {HASH}}}\n- {{name: x, sha256: {'b' * 64}}}", "two tokens"),
        (f"- {{name: x, sha256: {HASH}}}\n- {{name: y, sha256: {HASH}}}", "two tokens"),
    ],
)
def test_an_entry_that_is_not_accepted_is_named(text: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=r"^/etc/millpond/tokens.yaml") as error:
        api_tokens.parse(text, FILE)
    assert problem in str(error.value)
    assert "mp_secret" not in str(error.value)


def test_dates_without_a_zone_are_utc() -> None:
    for written in ("2030-01-01", "2030-01-01 00:00:00", "2030-01-01T01:00:00+01:00"):
        tokens = api_tokens.parse(f"- {{name: x, sha256: {HASH}, expires: {written}}}", FILE)
        assert tokens.by_name["x"].expires == 1_893_456_000


def test_the_fingerprint_changes_with_token_and_groups() -> None:
    tokens = [APIToken("x", "1" * 64), APIToken("x", "2" * 64), APIToken("x", "1" * 64, ("dev",))]
    assert len({token.fingerprint for token in tokens}) == 3
