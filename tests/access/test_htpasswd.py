from pathlib import Path

import bcrypt
import pytest

from proxy.access import htpasswd
from proxy.core.errors import ConfigError

FILE = Path("/etc/millpond/htpasswd")


def bcrypt_hash(password: str, cost: int = 4) -> str:
    return bcrypt.hashpw(password.encode(), bcrypt.gensalt(cost)).decode()


def test_a_file_of_apache_is_read() -> None:
    # htpasswd -nbB ann secret, of Apache 2.4
    line = "ann:" + bcrypt_hash("secret").replace("$2b$", "$2y$")
    users = htpasswd.parse(f"# people\n\n{line}\n", FILE)
    assert htpasswd.matches(users, "ann", "secret")
    assert not htpasswd.matches(users, "ann", "Secret")
    assert not htpasswd.matches(users, "bob", "secret")


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("bob:$apr1$abcdefgh$0123456789012345678901", "MD5"),
        ("bob:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "SHA-1"),
        ("bob:$6$salt$hash", "SHA-512"),
        ("bob:plain", "another"),
        ("bob:", "another"),
        ("bob", "user:hash"),
        (":" + "x", "user:hash"),
        ("bob:$2y$05$" + "z" * 53, "another"),
        ("bob:$2y$31$" + "." * 53, "cost 31"),
        ("ann:$2y$04$" + "." * 53, "already"),
    ],
)
def test_a_line_that_is_not_accepted_is_named(line: str, problem: str) -> None:
    text = f"ann:{bcrypt_hash('x')}\n{line}\n"
    with pytest.raises(ConfigError, match=r"^/etc/millpond/htpasswd: line 2") as error:
        htpasswd.parse(text, FILE)
    assert problem in str(error.value)


def test_a_hash_is_never_in_a_complaint() -> None:
    with pytest.raises(ConfigError) as error:
        htpasswd.parse("bob:$6$salt$hashhash", FILE)
    assert "hashhash" not in str(error.value)


@pytest.mark.parametrize("password", ["p" * 73, "é" * 37, "", "nul\0nul"])
def test_a_password_that_bcrypt_cannot_hash_never_matches(password: str) -> None:
    users = htpasswd.parse(f"ann:{bcrypt_hash('p' * 72)}\n", FILE)
    assert not htpasswd.matches(users, "ann", password)
    assert htpasswd.matches(users, "ann", "p" * 72)
    with pytest.raises(ConfigError):
        htpasswd.hash_password(password)


@pytest.mark.parametrize("user", ["ann", "bob", "nobody"])
def test_unknown_users_cost_as_much_as_known_ones(
    user: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted, because a clock on a busy machine proves nothing."""
    costs: list[str] = []
    check = bcrypt.checkpw

    def counted(password: bytes, stored: bytes) -> bool:
        costs.append(stored.decode()[4:6])
        return check(password, stored)

    monkeypatch.setattr(bcrypt, "checkpw", counted)
    text = f"ann:{bcrypt_hash('a', 5)}\nbob:{bcrypt_hash('b', 5)}\n"
    assert not htpasswd.matches(htpasswd.parse(text, FILE), user, "wrong")
    assert costs == ["05"]


def test_the_fingerprint_changes_with_the_password() -> None:
    one, other = (htpasswd.parse(f"ann:{bcrypt_hash(word)}\n", FILE) for word in ("a", "b"))
    assert one.fingerprint("ann") != other.fingerprint("ann") is not None
    assert one.fingerprint("bob") is None


def test_an_edit_keeps_all_other_lines() -> None:
    text = "# people\nann:1\n\nbob:2\n"
    assert htpasswd.with_user(text, "ann", "3") == "# people\nann:3\n\nbob:2\n"
    assert htpasswd.with_user(text, "eve", "4") == "# people\nann:1\n\nbob:2\neve:4\n"
    assert htpasswd.with_user(text, "bob", None) == "# people\nann:1\n\n"


@pytest.mark.parametrize("user", ["a:b", " a", "#a", "a\nb", ""])
def test_a_user_name_that_would_break_the_file_is_refused(user: str) -> None:
    with pytest.raises(ConfigError):
        htpasswd.check_user("", FILE, user, is_known=False)
