"""``Range`` against a reference: slicing."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.errors import RangeInvalid
from proxy.web.ranges import MAX_CHARACTERS, MAX_RANGES, ByteRange, requested

sizes = st.integers(1, 5000)
offsets = st.integers(0, 6000)


@given(sizes, offsets, offsets)
def test_first_to_last(size: int, first: int, last: int) -> None:
    data = bytes(size)
    expected = data[first : last + 1]
    if not expected:
        with pytest.raises(RangeInvalid) as caught:
            requested(f"bytes={first}-{last}", size)
        assert caught.value.headers() == {"Content-Range": f"bytes */{size}"}
        return
    [byte_range] = requested(f"bytes={first}-{last}", size)
    assert data[byte_range.start : byte_range.stop] == expected
    assert 0 <= byte_range.start < byte_range.stop <= size


@given(sizes, offsets)
def test_open_ended(size: int, first: int) -> None:
    if first >= size:
        with pytest.raises(RangeInvalid):
            requested(f"bytes={first}-", size)
    else:
        assert requested(f"bytes={first}-", size) == [ByteRange(first, size)]


@given(sizes, st.integers(1, 6000))
def test_suffix(size: int, count: int) -> None:
    data = range(size)
    [byte_range] = requested(f"bytes=-{count}", size)
    assert data[byte_range.start : byte_range.stop] == data[-count:]


@given(st.integers(100, 5000), st.lists(st.tuples(offsets, offsets), min_size=2, max_size=8))
def test_several(size: int, pairs: list[tuple[int, int]]) -> None:
    data = range(size)
    wanted = [data[first : last + 1] for first, last in pairs]
    expected = [(part[0], part[-1] + 1) for part in wanted if part]
    header = "bytes=" + ", ".join(f"{first}-{last}" for first, last in pairs)
    if not expected:
        with pytest.raises(RangeInvalid):
            requested(header, size)
        return
    total = sum(stop - start for start, stop in expected)
    if len(expected) > 1 and total > size:
        assert requested(header, size) == [], "the whole is less work"
    else:
        assert requested(header, size) == expected


@given(st.text(max_size=60), st.integers(0, 5000))
def test_anything_is_survived_and_stays_inside(text: str, size: int) -> None:
    for header in (text, f"bytes={text}"):
        try:
            byte_ranges = requested(header, size)
        except RangeInvalid:
            continue
        assert all(0 <= start < stop <= size for start, stop in byte_ranges)


@pytest.mark.parametrize(
    "header", [None, "", "bytes", "bytes=", "bytes=-", "lines=0-1", "bytes=0-1,x"]
)
def test_what_makes_no_sense_means_the_whole(header: str | None) -> None:
    assert requested(header, 100) == []


def test_too_many_mean_the_whole() -> None:
    header = "bytes=" + ",".join("0-0" for _ in range(MAX_RANGES + 1))
    assert requested(header, 10_000) == []


def test_t46_a_header_beyond_the_bound_asks_for_the_whole() -> None:
    assert requested("bytes=0-0" + " " * (MAX_CHARACTERS - 9), 10) == [ByteRange(0, 1)]
    assert requested("bytes=0-0" + " " * (MAX_CHARACTERS - 8), 10) == []
    assert requested("bytes=" + "0-0," * MAX_RANGES, 1000) == [ByteRange(0, 1)] * MAX_RANGES
    assert requested("bytes=" + "0-0," * (MAX_RANGES + 1), 1000) == []
