import json
from pathlib import Path

import pytest

from proxy.access import keys
from proxy.access.keys import SIGNS_FOR, VERIFIES_FOR, Keys


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys.json"


def test_a_key_is_kept_and_only_for_the_owner(file: Path) -> None:
    made = Keys(file).current
    assert file.stat().st_mode & 0o777 == 0o600
    kept = Keys(file).current
    assert kept.kid == made.kid
    assert kept.public.public_numbers() == made.public.public_numbers()
    assert [path.name for path in file.parent.iterdir()] == ["keys.json"]


def test_keys_rotate_with_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ring = Keys(file)
    first, now = ring.current, keys.time.time()
    monkeypatch.setattr(keys.time, "time", lambda: now + SIGNS_FOR + 1)
    second = ring.current
    assert second.kid != first.kid
    assert ring.get(first.kid) is not None
    monkeypatch.setattr(keys.time, "time", lambda: now + VERIFIES_FOR + 1)
    assert ring.get(first.kid) is None
    assert ring.get(second.kid) is not None
    monkeypatch.setattr(keys.time, "time", lambda: now + 2 * SIGNS_FOR + 10)
    assert ring.current.kid not in (first.kid, second.kid)
    assert len(json.loads(file.read_text())["keys"]) == 2


@pytest.mark.parametrize("kid", [None, 7, "unknown", ["x"], ""])
def test_other_ids_name_no_key(file: Path, kid: object) -> None:
    assert Keys(file).get(kid) is None


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"keys": [7]}', '{"keys": [{"kid": "x", "created": 1}]}',
     '{"keys": [{"kid": "x", "created": 1, "pem": "x"}]}', '{"keys": []}'],
)  # fmt: skip
def test_a_damaged_file_is_replaced(file: Path, text: str) -> None:
    file.write_text(text)
    made = Keys(file).current
    assert Keys(file).current.kid == made.kid


def test_without_a_place_for_them_keys_live_in_memory(tmp_path: Path) -> None:
    ring = Keys(tmp_path / "missing" / "keys.json")
    assert ring.get(ring.current.kid) is not None
    assert not list(tmp_path.iterdir())


def test_a_private_key_is_not_shown(file: Path) -> None:
    assert "private" not in repr(Keys(file).current)
