from math import inf

import pytest

from proxy.core.units import Amount, parse_seconds, parse_share, parse_size, show_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1048576", 1024**2),
        ("10b", 10),
        ("2k", 2000),
        ("50MB", 50_000_000),
        ("50MB/s", 50_000_000),
        ("9007199254740993", 2**53 + 1),  # no float has it
        ("10 KiB", 10240),
        (" 1.5GiB ", 3 * 1024**3 // 2),
        (".5tib", 1024**4 // 2),
        ("7EiB", 7 * 1024**6),
    ],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "fast",
        "1,5TiB",
        "-1",
        "80%",
        "10XB",
        "50MB/h",
        "1e3",
        "inf",
        "9" * 400 + ".5",
        "9" * 5000,
    ],
)
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a size; write 500MiB, 10GiB or 50MB/s$"):
        parse_size(text)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        (0, "0B"),
        (1023, "1023B"),
        (1024, "1.0KiB"),
        (10 * 1024**3, "10.0GiB"),
        (3 * 1024**6, "3.0EiB"),
    ],
)
def test_sizes_are_shown_in_binary_units(size: int, shown: str) -> None:
    assert show_size(size) == shown


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0", 0), ("0s", 0), ("500ms", 0.5), ("1.5h", 5400), ("30d", 30 * 86400), ("forever", inf)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "5 minutes", "-1s", "soon", "1e3s"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"^not a duration; write 30s, 5m, 12h, 30d or forever$"):
        parse_seconds(text)


def test_shares_of_a_file_system() -> None:
    assert (parse_share("80%"), parse_share("0.8")) == (0.8, 0.8)
    assert [Amount(0, 0.8).of(1000), Amount(7).of(1000)] == [800, 7]
    assert [str(Amount(0, 0.8)), str(Amount(1024))] == ["80%", "1.0KiB"]
    assert Amount(1) == Amount(1) != Amount(1, 0.5)
    with pytest.raises(ValueError, match=r"^not a share; write 80% or 0\.8$"):
        parse_share("most")
