import json

import pytest

from proxy.core.tolerant_json import (
    MAX_ELEMENTS,
    as_list,
    is_bounded,
    read_large_object,
    read_object,
)


def test_an_object_is_read() -> None:
    text = '{"a": [1, 2.5, null], "é": {"b": true}}'
    assert read_object(text.encode()) == json.loads(text)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b'{"a": 1',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_anything_else_is_empty(text: bytes) -> None:
    assert read_large_object(text) == {}
    assert read_object(text) == {}


def test_a_long_integer_costs_nothing_and_stays_an_integer() -> None:
    [number] = read_object(b'{"size": ' + b"9" * 100_000 + b"}").values()
    assert isinstance(number, int)
    assert number > 1 << 64


def test_the_number_of_values_is_limited_and_not_their_length() -> None:
    most = b'{"a":[' + b"0," * (MAX_ELEMENTS - 3) + b"0]}"
    more = most.replace(b"[0", b"[0,0")
    assert is_bounded(most)
    assert read_object(most)
    assert not is_bounded(more)
    assert read_object(more) == {}
    assert read_large_object(more)
    assert read_object(b'{"a": "%s"}' % (b"x" * (4 << 20)))


def test_a_list() -> None:
    assert as_list([1]) == [1]
    assert [as_list(value) for value in (None, "a", {"a": 1}, 3)] == [[], [], [], []]
